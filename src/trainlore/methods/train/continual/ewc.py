from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives import losses
from trainlore.verbs import Part, method


@method(
    name="ewc",
    title="EWC: elastic weight consolidation",
    paper="arXiv:1612.00796",
    family="train/continual",
    year=2017,
    tier="core",
    status="stable",
)
class EWC(Part):
    """Hold the weights that mattered for old data near the values they had.

    ## What it does
    Before training, estimates on rows of the old data how much its loss bends along every weight, and then adds

        strength / 2 * sum_i F_i (theta_i - theta*_i)^2,       F_i = mean over rows of (d loss(row) / d theta_i)^2

    with theta* the weights at the start: the diagonal of the (empirical) Fisher information.

    ## Claim
    A network learns permuted-MNIST tasks and Atari games one after another and keeps what it learned, where plain training
    forgets.

    ## Cost
    A forward and a backward pass a row for `rows` rows before training; two more copies of the trained weights.

    ## Fields worth tuning
    `strength`, over powers of ten: what is right depends on the size of the gradients at the old optimum.

    ## Watch out
    Where the old data is fitted perfectly its gradients vanish, and with them the protection: `strength` must then be
    large. Weights of a new head do not matter for the old data and stay free.

    ## Differs from the paper
    The labels of the old data are used, not labels drawn from the model. One part holds one earlier task; for several, use
    several parts, which all pull towards the weights of now.

    ## See also
    `replay`, `half_fine_tuning`
    """

    old: Data
    """Rows of the earlier data."""
    strength: float = 1000.0
    """Weight of the penalty."""
    rows: int = 200
    """Rows of `old` to estimate importance from."""

    ranges = {"strength": [10.0, 100000.0, "log"]}
    null = {"strength": 0.0}
    tiny = {"world": "digits", "old": "$test", "strength": 100.0, "rows": 16}

    def start(self, loop: Any) -> dict[str, Any]:
        if self.strength < 0:
            raise Bad(f"strength must be 0 or more, not {self.strength}")
        if not self.strength:
            return {}
        if not len(self.old) or self.rows < 1:
            raise Bad(f"importance needs rows: old has {len(self.old)}, rows={self.rows}")
        data = self.old.take(torch.randperm(len(self.old), generator=loop.rng("ewc"))[: self.rows].numpy())
        if loop.model.input == "input_ids" and "input_ids" not in data.columns:
            data = loop.model.encode(data, truncate=True)
        return {"importance": importance(loop, data), "anchor": {n: p.detach().clone() for n, p in trained(loop.model)}}

    def penalty(self, loop: Any, s: dict[str, Any]) -> Tensor | float:
        if not self.strength:
            return 0.0
        pulls = [(s["importance"][n] * (p - s["anchor"][n]).square()).sum() for n, p in trained(loop.model)]
        return self.strength / 2 * torch.stack(pulls).sum()


def trained(model: Any) -> list[tuple[str, torch.nn.Parameter]]:
    """The weights that are trained, by name."""
    return [(n, p) for n, p in model.net.named_parameters() if p.requires_grad]


def importance(loop: Any, data: Data) -> dict[str, Tensor]:
    """For every trained weight the mean over rows of its squared gradient, float32, by name."""
    names, weights = zip(*trained(loop.model), strict=True)
    found = [torch.zeros_like(p, dtype=torch.float32) for p in weights]
    was = loop.model.net.training
    loop.model.net.eval()
    for i in range(len(data)):  # the square is of each row's own gradient, so rows cannot share a pass
        batch = {k: v.to(loop.device) for k, v in data.batch([i], loop.model).items()}
        loss = losses.per_row(losses.rowwise(loop.model.kind, batch, loop.model(batch)), batch, loop.model.kind).sum()
        for total, grad in zip(found, torch.autograd.grad(loss, weights, allow_unused=True), strict=True):
            if grad is not None:
                total.addcmul_(grad.float(), grad.float(), value=1 / len(data))
    loop.model.net.train(was)
    return dict(zip(names, found, strict=True))
