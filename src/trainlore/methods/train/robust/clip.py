from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def shrink(grads: list[Tensor], norm: float) -> Tensor:
    """The factor min(1, norm / ||g||) that makes gradients no longer than `norm`, the length taken over all tensors: ()."""
    total = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
    return (norm / total.clamp(min=torch.finfo(total.dtype).tiny)).clamp(max=1.0)


@method(
    name="clip",
    title="Gradient clipping by global norm",
    paper="arXiv:1211.5063",
    family="train/robust",
    year=2012,
    tier="core",
    status="stable",
)
class Clip(Part):
    """Shorten a gradient that is too long, keeping its direction.

    ## What it does
    Takes the length of the gradient over all weights together and, when it is above `norm`, scales it down to that.

        g <- g * min(1, norm / ||g||_2)

    ## Claim
    Recurrent networks, whose gradients explode at cliffs of the loss, train without diverging.

    ## Cost
    One pass over the gradients.

    ## Fields worth tuning
    `norm`: 1 for language models; else the mean length seen in a healthy run. Watch how often it acts.

    ## Watch out
    AdamW divides by the gradients' own size, so a constant scale is undone: what clipping changes there is how much a
    single outlying step counts, and for how long (rows 1,000 times too bright cost digits 24 points without it, 30
    times too bright next to nothing). A gradient that is infinite or not a number stays broken. Clipping inside
    another part's `gradient` (before it in the recipe) and around it are different things.

    ## Differs from the paper
    Nothing is added to the length, as libraries do (1e-6).

    ## See also
    `sam`.
    """

    norm: float = 1.0
    """Greatest length of the gradient over all weights."""

    ranges = {"norm": [0.1, 5.0, "log"]}
    null = {"norm": float("inf")}
    tiny = {"world": "digits", "norm": 0.1}

    def start(self, loop: Any) -> dict[str, Any]:
        if not self.norm > 0:
            raise Bad(f"norm={self.norm} must be above 0: at 0 nothing would be learned; inf switches it off")
        return {}

    def gradient(self, loop: Any, s: dict[str, Any], inner: Any) -> None:
        inner()
        grads = [p.grad for p in loop.model.net.parameters() if p.grad is not None]
        if self.norm < float("inf") and grads:
            torch._foreach_mul_(grads, shrink(grads, self.norm))
