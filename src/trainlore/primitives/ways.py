"""Training as a function of the weights: flat gradients, and how far a few rows lead a student from an expert's way."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

__all__ = ["Loss", "Weights", "flat_gradient", "loss_of", "matching_loss", "reset"]

Weights = list[Tensor]
Loss = Callable[[Weights, Tensor, Tensor], Tensor]


def flat_gradient(loss: Loss, weights: Weights, x: Tensor, y: Tensor, rho: float, alpha: float) -> Weights:
    """The gradient of GSAM with the adaptive ball of ASAM, a tensor for each of `weights`; plain at rho 0.

    Taken at w + rho w^2 g / ||w g||, less alpha times the part of the plain gradient g that is orthogonal to it."""
    plain = _slope(loss, weights, x, y)
    if not rho:
        return plain
    size = torch.stack([(w * g).norm() for w, g in zip(weights, plain, strict=True)]).norm() + 1e-12
    climbed = [w + rho * w.square() * g / size for w, g in zip(weights, plain, strict=True)]
    there = _slope(loss, climbed, x, y)
    inner = sum((g * h).sum() for g, h in zip(plain, there, strict=True))
    length = torch.stack([h.square().sum() for h in there]).sum() + 1e-12
    return [h - alpha * (g - inner / length * h) for g, h in zip(plain, there, strict=True)]


def _slope(loss: Loss, weights: Weights, x: Tensor, y: Tensor) -> Weights:
    here = [w.detach().requires_grad_() for w in weights]
    return [g.detach() for g in torch.autograd.grad(loss(here, x, y), here, materialize_grads=True)]


def matching_loss(loss: Loss, start: Weights, goal: Weights, x: Tensor, y: Tensor, rate: Tensor, steps: int) -> Tensor:
    """How far `steps` of SGD on rows x, y from `start` end from `goal`: ||end - goal||^2 over ||start - goal||^2."""
    now = [w.detach().requires_grad_() for w in start]
    for _ in range(steps):
        slopes = torch.autograd.grad(loss(now, x, y), now, create_graph=True, materialize_grads=True)
        now = [w - rate * g for w, g in zip(now, slopes, strict=True)]
    missed = sum((w - g).square().sum() for w, g in zip(now, goal, strict=True))
    return missed / sum((w - g).square().sum() for w, g in zip(start, goal, strict=True))


def loss_of(net: nn.Module) -> Loss:
    """The mean cross-entropy of the network with the weights given, in the order of its parameters, on rows x, y."""
    names = [n for n, _ in net.named_parameters()]

    def loss(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, dict(zip(names, weights, strict=True)), (x,)).float(), y)

    return loss


def reset(net: nn.Module) -> Weights:
    """Fresh weights, in place, by each layer's own rule; a copy of them."""
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
    return [p.detach().clone() for p in net.parameters()]
