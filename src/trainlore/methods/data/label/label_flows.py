from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.flows import Flow, disagreement, drawn_labels
from trainlore.primitives.greedy import embeddings
from trainlore.primitives.votes import count_classes, label_model, labelled, votes_of
from trainlore.runs import Run
from trainlore.verbs import Curate, method

DECAY, CLIP = 0.996, 1000.0  # the authors': of the rate after every pass over the rows, and of the gradient's norm


@method(
    name="label_flows",
    title="Label Learning Flows",
    paper="arXiv:2302.09649",
    lit="p391",
    family="data/label",
    year=2023,
    tier="core",
    status="stable",
    code="yolu1055/weakly-label-learning-flow",
)
class LabelFlows(Curate):
    """Learn a density of labels given the input under which no labelling function errs more than it may.

    ## What it does
    A conditional flow turns noise z into a labelling y of the row x. It is trained inversely, on its own samples, so
    that no label has to be guessed: they are to be likely under the flow, lie in the simplex, and differ from what each
    function says of each class by no more than its error bound:

        -log p(y|x) / (K log 2) + 10 ( sum_k [-y_k]_+^2 + sum_k [y_k - 1]_+^2 + (sum_k y_k - 1)^2 )
            + 10 sum_{f,k} [ mean (y_k (1 - s_fk) + (1 - y_k) s_fk) - bound_fk ]_+^2
        y = g(z; x),   log p(y|x) = log p(z) - log |dg/dz|

    Rows get the mean of `samples` clipped draws as `shares`, and its largest class as `label`.

    ## Claim
    Better than many baselines on three weakly supervised problems: classification, regression and completing point
    clouds. The authors' example: three functions of a pixel each, two kinds of clothes, error bounds from true labels.

    ## Cost
    Steps x rows x 4 `flows` small networks of three parts. Memory: `batch_size` rows while it learns, and 4 bytes x
    rows x (inputs + 2 classes + 6 functions): 1.1 GiB for a million rows of 200, 10 and 10.

    ## Fields worth tuning
    `error`: measure it on rows with true labels; it says who is to be believed. `steps`: the authors take 501 passes.

    ## Watch out
    The bounds decide: within a loose one any labelling will do. Not reproduced here: with known error rates, on two
    kinds of digits, it was 1.5 points above a vote weighted by the same rates (20 seeds, p 0.1). With `label_model`'s
    rates, our claim at first, it was no better than the majority (-0.8 +- 1.7 points, 20 seeds). With ten classes and
    150 steps of 2 pairs of couplings it got half of the digits right, the majority three quarters. It sees x, so rows
    on which all functions abstain get labels too (`uncovered` says whether they stay).

    ## Differs from the paper
    More than two classes: even and odd entries of y take turns (for two that is the authors' order). One network makes
    scale and shift. No batch norm inside the couplings, which the authors also leave in training mode when predicting;
    x is standardized instead. Classification only.

    ## See also
    `label_model`, `majority_vote`.
    """

    column: str = "features"
    """Column of vectors that the labels depend on."""
    error: tuple[float, ...] = ()
    """The most that each function may err, or one number for all; none: as much as `label_model` thinks it does."""
    classes: int | None = None
    """Number of classes; none: the highest vote and one."""
    flows: int = 8
    """Pairs of couplings."""
    width: int = 64
    """Width of their networks."""
    penalty: float = 10.0
    """Weight of each constraint."""
    steps: int = 500
    """Steps of Adam."""
    lr: float = 1e-3
    """Rate of Adam; times 0.996 after every pass over the rows."""
    batch_size: int = 4096
    """Rows a step, over which a function's error is taken."""
    samples: int = 10
    """Labellings drawn and averaged for each row."""
    uncovered: Literal["drop", "keep"] = "drop"
    """Whether rows on which all functions abstain are dropped, or labelled by the flow like the others."""
    labeller: Curate | None = None
    """Step that makes the votes of data without them."""

    tiny = {"world": "digits", "flows": 1, "width": 8, "steps": 20, "labeller": {"label_votes": {
        "column": "features", "rules": [{"label": 0, "at": 28, "below": 0.1}, {"label": 1, "at": 28, "above": 0.5},
                                        {"label": 1, "at": 36, "above": 0.5}]}}}  # fmt: skip

    def __call__(self, run: Run, data: Data) -> Data:
        for name in ("flows", "width", "steps", "batch_size", "samples"):
            if getattr(self, name) < 1:
                raise Bad(f"{name}={getattr(self, name)} must be at least 1")
        if not (self.penalty >= 0 and 0 <= self.lr < math.inf and all(0 <= e <= 1 for e in self.error)):
            said = f"penalty={self.penalty}, lr={self.lr}, error={self.error}"
            raise Bad(f"{said}: give at least 0, a number from 0 up, and shares from 0 to 1")
        data, votes = votes_of(run, data, self.labeller, "label_flows")
        classes = count_classes(votes, self.classes, "label_flows")
        x = embeddings(run, data, None, self.column, "label_flows")
        x = (x - x.mean(0)) / (x.std(0, unbiased=False) + 1e-6)
        said, found = torch.from_numpy(votes), label_model(votes, classes)
        if len(self.error) not in (0, 1, votes.shape[1]):
            raise Bad(f"error={self.error}: give one number, or one for each of {votes.shape[1]} functions")
        bound = torch.tensor(self.error)[:, None].expand(votes.shape[1], classes) if self.error else None
        bound = disagreement(torch.from_numpy(found.shares).float(), said) if bound is None else bound
        flow, rng = self._trained(run, x, said, bound), run.rng("label_flows", "samples")
        total = drawn_labels(flow, x, classes, self.samples, self.batch_size, rng) + 1e-9
        if not total.isfinite().all():
            raise Bad(f"label_flows has no finite labels after {self.steps} steps: lower lr={self.lr}")
        shares = (total / total.sum(1, keepdim=True)).double().numpy()
        label = shares.argmax(1) if self.uncovered == "keep" else np.where(found.covered, shares.argmax(1), -1)
        return labelled(data, shares, label, self.uncovered, "label_flows")

    def _trained(self, run: Run, x: Tensor, said: Tensor, bound: Tensor) -> Flow:
        classes = bound.shape[1]
        with run.global_rng("label_flows"):
            flow = Flow(x.shape[1], classes, self.width, self.flows)
        Model(flow)  # the meter counts what models run
        optimizer = torch.optim.Adam(flow.parameters(), lr=self.lr)
        passes = -(-len(x) // self.batch_size)
        for step in range(self.steps):
            rng, (turn, at) = run.rng("label_flows", step), divmod(step, passes)
            if at == 0:
                order = torch.randperm(len(x), generator=run.rng("label_flows", "order", turn))
            rows = slice(None) if passes == 1 else order[at * self.batch_size : (at + 1) * self.batch_size]
            z = torch.randn(len(x[rows]), classes, generator=rng)
            y, log_det = flow(x[rows], z).split(classes, dim=1)
            unlikely = (log_det[:, 0] - Normal(0, 1).log_prob(z).sum(1)).mean() / (classes * math.log(2))
            simplex = (-y).clamp(min=0).square().sum(1) + (y - 1).clamp(min=0).square().sum(1) + (y.sum(1) - 1).square()
            beyond = (disagreement(y, said[rows]) - bound).clamp(min=0).square().sum()
            optimizer.zero_grad()
            (unlikely + self.penalty * (simplex.mean() + beyond)).backward()
            nn.utils.clip_grad_norm_(flow.parameters(), CLIP)
            optimizer.param_groups[0]["lr"] = self.lr * DECAY**turn
            optimizer.step()
        return flow
