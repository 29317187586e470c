from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def ascent(grads: list[Tensor], rho: float) -> list[Tensor]:
    """The step of length `rho` up the slope: rho * g / ||g||, the norm taken over all tensors together. 0 where g is 0."""
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))
    scale = torch.where(norm > 0, rho / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0.0)
    return [g * scale for g in grads]


@method(
    name="sam",
    title="Sharpness-Aware Minimization",
    paper="arXiv:2010.01412",
    family="train/robust",
    year=2020,
    tier="core",
    status="stable",
    code="google-research/sam",
)
class SAM(Part):
    """Take the gradient at the worst point near the weights.

    ## What it does
    Takes the gradient, walks a step of fixed length up it, takes the gradient again there, walks back and descends with
    the second one. Flat minima, whose neighbourhood is low, win over sharp ones.

        e = rho * g / ||g||_2            g = dL(w)/dw, one norm over all weights
        gradient = dL/dw at w + e

    ## Claim
    Lower test error than plain training over CIFAR-10, CIFAR-100, ImageNet and fine-tuning, many state of the art at
    the time, and robustness to wrong labels on par with methods made for it. The authors' example command uses rho 0.05.

    ## Cost
    Two forwards and two backwards a step, one copy of the weights. Compare at equal work, not at equal steps.

    ## Fields worth tuning
    `rho`: 0.01 to 0.2; more with noisy labels.

    ## Watch out
    Batch norm sees both passes: its running statistics are updated at the displaced weights too. It pays once plain
    training memorizes: on noisy digits +4.7 points at 400 steps, -2 (+- 1.5) at 150; at equal work +2.7 (+- 1.7) with
    noise and -0.4 (+- 1.2) without. A loss scaled by another part scales g but not e. The penalty of other parts is
    part of g; AdamW's decay is not.

    ## Differs from the paper
    The authors' code has L2 decay inside the loss, hence in g, and keeps only the first pass's batch norm statistics.
    As there, both passes use the same dropout masks.

    ## See also
    `clip`.
    """

    rho: float = 0.05
    """Length of the step to the worst point, over all weights together."""

    ranges = {"rho": [0.01, 0.5, "log"]}
    null = {"rho": 0.0}
    tiny = {"world": "digits", "rho": 0.1}

    def start(self, loop: Any) -> dict[str, Any]:
        if self.rho < 0:
            raise Bad(f"rho={self.rho} must be at least 0: it is a length")
        return {}

    def gradient(self, loop: Any, s: dict[str, Any], inner: Any) -> None:
        if not self.rho:
            inner()
            return
        devices = [loop.device] if loop.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):  # the second pass then draws the same dropout masks
            inner()
        weights = [p for p in loop.model.net.parameters() if p.grad is not None]
        before = [p.detach().clone() for p in weights]
        with torch.no_grad():
            for p, e in zip(weights, ascent([p.grad for p in weights], self.rho), strict=True):
                p.add_(e)
        inner()
        with torch.no_grad():
            for p, old in zip(weights, before, strict=True):
                p.copy_(old)
