"""Conditional flows of few dimensions: an invertible way from noise to labels, by what is known of a row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Coupling", "Flow", "disagreement", "drawn_labels"]


class Coupling(nn.Module):
    """Scales and shifts some entries of y by what the others and x say: invertible, with a triangular Jacobian."""

    def __init__(self, inputs: int, moves: Tensor, width: int) -> None:
        super().__init__()
        self.moves, self.stays = torch.nonzero(moves)[:, 0], torch.nonzero(~moves)[:, 0]
        self.gain, self.lift = (_net(inputs, width) for _ in range(2))
        self.read, self.out = _net(len(self.stays), width), nn.Linear(width, 2 * len(self.moves))
        for layer in (self.gain[-1], self.lift[-1], self.out):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, D), y (B, K) -> y (B, K) and log |det| (B,)."""
        told = nn.functional.silu(self.gain(x).exp() * self.read(y[:, self.stays]) + self.lift(x))
        scale, shift = self.out(told).chunk(2, dim=-1)
        scale = nn.functional.softsign(scale) / 2  # the spread changes by a factor between e^-1/2 and e^1/2
        return y.index_copy(1, self.moves, y[:, self.moves] * scale.exp() + shift), scale.sum(-1)


class Flow(nn.Module):
    """From normal noise z (B, K) to labels y (B, K) for inputs x (B, D); `steps` pairs of couplings."""

    def __init__(self, inputs: int, classes: int, width: int, steps: int) -> None:
        super().__init__()
        even = torch.arange(classes) % 2 == 0
        self.parts = nn.ModuleList(Coupling(inputs, moves, width) for _ in range(steps) for moves in (even, ~even))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """y and log |dy / dz| side by side, (B, K + 1)."""
        total = torch.zeros(len(z), device=z.device)
        for part in self.parts:
            z, log_det = part(x, z)
            total = total + log_det
        return torch.cat([z, total[:, None]], dim=1)


def disagreement(y: Tensor, votes: Tensor) -> Tensor:
    """How much labels y (B, K) differ from what each of F functions says of each class, where it votes: (F, K).

    votes: classes int64 (B, F), -1 where one abstains. With s_k 1 for the class voted for and else 0, the mean over those
    rows of y_k (1 - s_k) + (1 - y_k) s_k, which is the error rate of a function on a class when y is the truth.
    """
    functions, classes = votes.shape[1], y.shape[1]
    voted = (votes >= 0).to(y)
    at = (votes.clamp(min=0) + torch.arange(functions, device=votes.device) * classes).flatten()
    own = (1 - 2 * y.gather(1, votes.clamp(min=0))) * voted  # of the class voted for: 1 - y instead of y
    moved = y.new_zeros(functions * classes).scatter_add(0, at, own.flatten()).view(functions, classes)
    return (voted.T @ y + moved) / voted.sum(0).clamp(min=1)[:, None]


@torch.no_grad()
def drawn_labels(flow: Flow, x: Tensor, classes: int, samples: int, size: int, rng: torch.Generator) -> Tensor:
    """The sum over `samples` draws of the labels of each row of x (N, D), cut to [0, 1]: (N, K), `size` rows at once."""
    total = torch.zeros(len(x), classes)
    for _ in range(samples):
        z = torch.randn(len(x), classes, generator=rng)
        for at in range(0, len(x), size):
            rows = slice(at, at + size)
            total[rows] += flow(x[rows], z[rows])[:, :-1].clamp(0, 1)
    return total


def _net(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.SiLU(), nn.Linear(width, width))
