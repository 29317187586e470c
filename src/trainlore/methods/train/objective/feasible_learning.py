from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch
from trainlore.primitives.losses import per_row
from trainlore.verbs import Part, method


def ascend(dual: Tensor, losses: Tensor, bound: float, step: float, relax: float = 0.0) -> Tensor:
    """One step of projected ascent of the dual variables: max(0, dual + step * (losses - bound - relax * dual)).

    dual, losses: (B,). relax = 1 / alpha, for slack bought at the price alpha/2 * ||slack||^2; 0: no slack."""
    return (dual + step * (losses - bound - relax * dual)).clamp(min=0)


@method(
    name="feasible_learning",
    title="Feasible Learning",
    paper="arXiv:2501.14912",
    lit="p516",
    family="train/objective",
    year=2025,
    tier="core",
    status="stable",
    code="juan43ramirez/feasible-learning",
)
class FeasibleLearning(Part):
    """Ask of every row that its loss stays below a bound, instead of a low loss on average.

    ## What it does
    Each row has a dual variable that grows while its loss is above the bound and shrinks while it is below; the loss of
    the row counts in that measure. Rows that are good enough stop pulling, stubborn ones pull ever harder. The dual step
    comes first, then the step of the weights with the new values.

        find w with loss_i(w) <= bound for all i
        dual_i <- max(0, dual_i + dual_lr * (loss_i - bound - relax * dual_i))
        loss = dual_i * loss_i

    With `relax` above 0 (the paper's resilient form) a row may exceed the bound by a slack that costs
    ||slack||^2 / (2 relax); then slack_i = relax * dual_i and duals cannot grow without end.

    ## Claim
    Image classification, age regression and preference tuning: lighter tails of the loss over rows than training on the
    average, at a marginal price in the average.

    ## Cost
    One number a row.

    ## Fields worth tuning
    `bound`: ln(1/p) asks for probability p of the right class (the authors use p = 0.6 and p = 1); `relax` (they use
    1) wherever some rows cannot be learned; `dual_lr` (they use 1e-4 with SGD on CIFAR-10).

    ## Watch out
    The mean loss can rise while training is short (on digits at 200 steps by a fifth, with a lighter tail already).
    With wrong labels the plain form chases them: set `relax`. Duals start at 0, so a row pulls only from its second
    visit or once it is above the bound, and a batch in which all rows are good gives no gradient at all. With AdamW
    the common scale of the duals does not matter, only their ratio; with SGD it multiplies the rate.

    ## Differs from the paper
    The loss of a batch is the mean of dual_i * loss_i where the authors' is the sum. Rows that are drawn twice in a step
    take one dual step. Around `sam` the dual step is taken once, at the undisplaced weights.

    ## See also
    `clip`, `label_smoothing`.
    """

    bound: float = 0.5108
    """The loss asked of every row; 0.5108 = ln(1/0.6)."""
    dual_lr: float = 0.01
    """Step size of the dual variables."""
    relax: float = 0.0
    """1/alpha, how cheap slack is; 0: none is given."""
    initial: float = 0.0
    """Where the dual variables start."""

    ranges = {"bound": [0.1, 2.0, "log"], "dual_lr": [0.001, 0.1, "log"]}
    null = {"dual_lr": 0.0, "initial": 1.0}
    tiny = {"world": "digits", "dual_lr": 0.1}
    alone = "it remembers something of every row in its loss, and each process would know its own rows only"

    def start(self, loop: Any) -> dict[str, Any]:
        for name in ("bound", "dual_lr", "relax", "initial"):
            if getattr(self, name) < 0:
                raise Bad(f"{name}={getattr(self, name)} must be at least 0")
        if not self.dual_lr and not self.initial:
            raise Bad(
                "dual_lr=0 with initial=0 trains on nothing: give dual_lr above 0, or initial=1 for plain training"
            )
        n = len(loop.data)
        return {
            "dual": torch.full((n,), self.initial, device=loop.device),
            "last": torch.full((n,), -1, dtype=torch.long, device=loop.device),  # the step of each row's last dual step
        }

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
        losses, row = inner(batch, out), batch["row"]
        ours, at = (
            row >= 0,
            row.clamp(min=0),
        )  # rows from elsewhere (`replay`) have no dual: they count like the mean row
        mean = per_row(losses.detach().float(), batch, loop.model.kind)
        now = s["dual"][at]
        due = ours & (s["last"][at] < loop.t)  # asked twice in a step (by `sam`, say): the first answer stands
        dual = torch.where(due, ascend(now, mean, self.bound, self.dual_lr, self.relax), now)
        s["dual"][row[ours]], s["last"][row[ours]] = dual[ours], loop.t
        dual = torch.where(ours, dual, s["dual"].mean())
        return losses * dual.reshape(-1, *[1] * (losses.dim() - 1)).to(losses.dtype)
