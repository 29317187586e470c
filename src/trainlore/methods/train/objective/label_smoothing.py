from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch
from trainlore.primitives.losses import aligned, targets
from trainlore.verbs import Part, method


def uniform_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy against the uniform target, -mean_k log softmax(logits)_k.

    logits: (..., K); labels: class or token ids (...), where -100 gives 0, or shares (..., K). Returns float32 (...)."""
    loss = -logits.float().log_softmax(-1).mean(-1)
    return loss if labels.is_floating_point() else torch.where(labels == -100, 0.0, loss)


@method(
    name="label_smoothing",
    title="Label smoothing",
    paper="arXiv:1512.00567",
    family="train/objective",
    year=2015,
    tier="core",
    status="stable",
)
class LabelSmoothing(Part):
    """Mix a little of the uniform distribution into every target.

    ## What it does
    The target of a row becomes (1 - amount) of its label and `amount` spread evenly over all K classes, the right one
    included; as the cross-entropy is linear in the target, that is

        loss = (1 - amount) * inner + amount * (-mean_k log p_k)

    so it wraps whatever loss is inside it. For language models the same at every trained token.

    ## Claim
    ImageNet with Inception-v3, amount 0.1 over 1000 classes: about 0.2 points of top-1 accuracy.

    ## Cost
    None to speak of.

    ## Fields worth tuning
    `amount`, up to 0.2.

    ## Watch out
    Confidences are pulled down: compare models by accuracy or after calibration, not by loss. Around a distillation
    loss it smooths that too; inside, only the hard labels.

    ## See also
    `mixup`.
    """

    amount: float = 0.1
    """Share of the target that is spread evenly."""

    needs = {"labels": "any"}
    ranges = {"amount": [0.02, 0.4, "log"]}
    null = {"amount": 0.0}
    tiny = {"world": "digits", "amount": 0.1}

    def start(self, loop: Any) -> dict[str, Any]:
        if not 0 <= self.amount < 1:
            raise Bad(f"amount={self.amount} must be at least 0 and below 1: it is a share of the target")
        if loop.model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(f"label_smoothing smooths class targets; a {loop.model.kind} has none: leave it out")
        return {}

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor, inner: Any) -> Tensor:
        if not self.amount:
            return inner(batch, out)
        even = uniform_loss(aligned(loop.model.kind, out), targets(loop.model.kind, batch))
        return (1 - self.amount) * inner(batch, out) + self.amount * even
