"""Two experts over one set of frozen weights: an adapter that learns, one that follows it slowly, and the surer's answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainlore.primitives.reparam import Written


class Pair(nn.Module):
    """Says the weight of a `Written` layer, by the online adapter or by the offline one."""

    def __init__(self, weight: nn.Parameter, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, cols = weight.shape
        self.weight, self.offline = weight, False
        self.a = nn.Parameter(((2 * torch.rand(rank, cols, generator=generator) - 1) / cols**0.5).to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.s = nn.Parameter(weight.new_ones(1))
        for name in ("a", "b", "s"):
            self.register_buffer(f"slow_{name}", getattr(self, name).detach().clone())

    def forward(self) -> Tensor:
        a, b, s = (self.slow_a, self.slow_b, self.slow_s) if self.offline else (self.a, self.b, self.s)
        return self.weight + s * b @ a

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the offline adapter towards the online one."""
        for name in ("a", "b", "s"):
            getattr(self, f"slow_{name}").lerp_(getattr(self, name), 1 - decay)


def pairs(net: nn.Module) -> Iterator[Pair]:
    """The adapters of a network."""
    return (m.make for m in net.modules() if isinstance(m, Written) and isinstance(m.make, Pair))


def use(net: nn.Module, offline: bool) -> None:
    """Have the network answer with its offline adapters, or with the online ones."""
    for pair in pairs(net):
        pair.offline = offline


def surer(online: Tensor, offline: Tensor) -> Tensor:
    """Logits (B,K) of the elementwise larger of two experts' probabilities, from the logits (B,K) of each."""
    return torch.maximum(online.float().log_softmax(-1), offline.float().log_softmax(-1))


class Surer(nn.Module):
    """The larger probability of the two experts inside a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.main_input_name = getattr(net, "main_input_name", "features")
        if hasattr(net, "config"):
            self.config = net.config

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        online = self._logits(*args, **kwargs)
        use(self.net, offline=True)
        try:
            with torch.no_grad():
                offline = self._logits(*args, **kwargs)
        finally:
            use(self.net, offline=False)
        return surer(online, offline)

    def _logits(self, *args: Any, **kwargs: Any) -> Tensor:
        out = self.net(*args, **kwargs)
        return getattr(out, "logits", out)
