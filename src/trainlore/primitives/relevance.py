"""Relevance: what the logit of the right class owes to every unit of a chain of layers, handed back layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.primitives.shrinking import ALIKE, LAYERS

TINY = 1e-9


def passed(module: nn.Module, a: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of what a module reads: a (B,...), relevance of its outputs -> the shape of a.

    z+ rule: R_i = sum_j a_i w+_ij / (sum_i' a_i' w+_i'j) R_j, of pools by what each input gives to the pooled value.
    """
    if isinstance(module, ALIKE):
        return relevance.reshape(a.shape)
    with torch.enable_grad():
        a = a.detach().requires_grad_()
        if isinstance(module, nn.Linear):
            z = F.linear(a, module.weight.detach().clamp(min=0))
        elif isinstance(module, nn.Conv2d):
            weight = module.weight.detach().clamp(min=0)
            z = F.conv2d(a, weight, None, module.stride, module.padding, module.dilation)
        else:
            z = module.forward(a)  # past its hooks: a counter of operations would follow the backward pass too
        (back,) = torch.autograd.grad(z, a, relevance / (z.detach() + TINY))
    return a.detach() * back


class Relevance(nn.Module):
    """Rows and their classes -> the relevance of every unit of every layer but the last: (B, units of all layers)."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.chain = nn.ModuleList(modules)
        self.inner = [m for m in modules if isinstance(m, LAYERS)][:-1]

    @torch.no_grad()
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        read = []
        for module in self.chain:
            read.append(x)
            x = module(x)
        relevance = x * F.one_hot(labels, x.shape[1])
        found: list[Tensor] = []
        for module, a in zip(reversed(self.chain), reversed(read), strict=True):
            if any(module is one for one in self.inner):
                found.append(relevance.flatten(2).sum(-1) if relevance.dim() > 2 else relevance)
                if len(found) == len(self.inner):
                    break
            relevance = passed(module, a, relevance)
        return torch.cat(found[::-1], 1)
