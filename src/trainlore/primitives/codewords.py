"""Weights as codewords that are learned: each run of inputs a mixture of its nearest ones, until one of them is chosen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from trainlore.primitives.grids import vectors
from trainlore.primitives.kmeans import k_means
from trainlore.primitives.masks import weight_of
from trainlore.primitives.reparam import turned

FIXED = 1e4  # the logit of a choice that is made: the others' shares are exactly 0, and so are their gradients
DONE = 0.99  # share of made choices beyond which a layer makes the rest


def clusters(weight: Tensor, d: int, k: int, generator: np.random.Generator) -> Tensor:
    """A table (k', d) for the runs of d inputs of a weight: k codewords, or as a power of two at most a quarter of the runs."""
    runs = vectors(weight, d).flatten(0, 1)
    k = min(k, 1 << max(0, len(runs).bit_length() - 3))
    return torch.from_numpy(k_means(runs.cpu().numpy(), k, generator)[1]).to(runs.device)


def candidates(rows: Tensor, book: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The n nearest of the codewords (k, d) to each row (N, d), and the logits they start with: int64, float32 (N, n).

    A candidate's logit is log(distance of the farthest candidate / its own): shares go as 1 / distance.
    """
    far, near = torch.cdist(rows, book).topk(min(n, len(book)), dim=1, largest=False)
    return near, ((far[:, -1:] + 1e-5) / (far + 1e-5)).log()


def openness(shares: Tensor) -> Tensor:
    """n * mean p (1 - p) over the rows (N, n) whose choice is not made yet; 0 where all are: scalar."""
    spread = (shares * (1 - shares)).mean(1)
    return shares.shape[1] * spread.sum() / (spread > 0).sum().clamp(min=1)


class Mixture(nn.Module):
    """weight -> its runs of d inputs as shares of their candidate codewords, with all that is learned about them."""

    def __init__(self, layer: nn.Module, book: Tensor, d: int, n: int) -> None:
        super().__init__()
        self.rows, self.turned = len(weight_of(layer)), turned(layer)
        near, logits = candidates(vectors(weight_of(layer), d).flatten(0, 1), book, n)
        self.book, self.logits = nn.Parameter(book), nn.Parameter(logits)
        self.register_buffer("near", near)

    def forward(self, weight: Tensor) -> Tensor:
        runs = (self.logits.softmax(1)[:, :, None] * self.book[self.near]).sum(1)
        matrix = runs.view(self.rows, -1)[:, : (weight.shape[0] if self.turned else weight[0].numel())]
        return (matrix.T if self.turned else matrix.reshape(weight.shape)).to(weight.dtype)

    @torch.no_grad()
    def freeze(self, beyond: float) -> None:
        """Make the choices whose share is beyond a bound; all, where hardly any is left."""
        shares, best = self.logits.softmax(1).max(1)
        made = shares > (beyond if (shares > beyond).float().mean() <= DONE else 0.0)
        self.logits[made] = FIXED * nn.functional.one_hot(best[made], self.logits.shape[1]).float()

    def codes(self) -> Tensor:
        """The chosen codeword of each run: uint8 (out, runs)."""
        best = self.logits.argmax(1, keepdim=True)
        return self.near.gather(1, best).view(self.rows, -1).to(torch.uint8)
