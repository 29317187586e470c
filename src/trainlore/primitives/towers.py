"""Small towers over columns of a table: text as a bag of hashed n-grams, a whole number as a learned vector, numbers by a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.primitives.ngrams import Hasher

if TYPE_CHECKING:
    from trainlore.nouns import Data

__all__ = ["Reader", "Towers", "contrastive", "optimizers"]


def contrastive(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """How badly each half of B pairs finds its other half among the batch's: first, second (B, D) of length 1 -> a scalar.

    The mean of two cross-entropies over scale * cosine, one for each direction.
    """
    logits, own = scale * first @ second.T, torch.arange(len(first))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


class Reader:
    """Columns as tensors: numbers (B, F); of text and whole numbers where each row's ids begin (B,), and ids and shares (T,)."""

    def __init__(self, columns: Sequence[str], buckets: int) -> None:
        self.columns, self.buckets, self.hasher = columns, buckets, Hasher(2, buckets)

    def forms(self, data: Data, who: str) -> list[tuple[str, int]]:
        """What each column holds, and how many numbers a row (0: ids). Raises Bad where a column holds something else."""
        data.need(*self.columns, who=who)
        found = []
        for name in self.columns:
            kind = data.kinds[name]
            if kind != "text" and (kind not in ("labels", "numbers") or not isinstance(data[name], np.ndarray)):
                raise Bad(f"columns={self.columns}: {name!r} holds {kind}; {who} reads text, numbers and whole numbers")
            found.append((kind, data[name][:1].size if kind == "numbers" else 0))
        return found

    def __call__(self, data: Data) -> list[Tensor]:
        """The columns of these rows, one tensor or three each."""
        read: list[Tensor] = []
        for name in self.columns:
            kind = data.kinds[name]
            if kind == "numbers":
                read.append(torch.tensor(data[name]).float().reshape(len(data), -1))
            elif kind == "labels":
                read += [torch.arange(len(data)), torch.tensor(data[name]).long() % self.buckets, torch.ones(len(data))]
            else:
                read += self._bags(list(data.text(name)))
        return read

    def _bags(self, texts: list[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Where the n-grams of each text begin (B,), their buckets, and the share of the text's that each is (T,).

        Nothing is padded to the longest text, and none has more entries than there are buckets."""
        at, found = 0, []
        for g in self.hasher.grams(texts):
            found.append((g.row + at) * self.buckets + g.bucket)
            at += len(g.words)
        key, count = np.unique(np.concatenate(found), return_counts=True)
        row, ids = np.divmod(key, self.buckets)
        size, total = np.bincount(row, minlength=len(texts)), np.bincount(row, count, len(texts))
        share = torch.from_numpy(count / total[row]).float()
        return torch.from_numpy(np.cumsum(size) - size), torch.from_numpy(ids), share


class Towers(nn.Module):
    """Two layers for each column a `Reader` reads; `numbers` says how many numbers it has a row, 0: ids below `ids`."""

    def __init__(self, numbers: Sequence[int], ids: int, width: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(
            nn.Linear(n, width) if n else nn.EmbeddingBag(ids, width, mode="sum", sparse=True) for n in numbers
        )
        out = width if len(numbers) == 2 else 1
        self.rest = nn.ModuleList(nn.Sequential(nn.ReLU(), nn.Linear(width, out)) for _ in numbers)
        self.log_scale = nn.Parameter(torch.tensor(1 / 0.07).log())  # of the cosines; CLIP's beginning

    def forward(self, *columns: Tensor) -> Tensor:
        """Of two columns both halves at length 1 (B, 2, D), of a single one a logit (B,)."""
        given, read = iter(columns), []
        for first, rest in zip(self.first, self.rest, strict=True):
            x = next(given)
            read.append(rest(first(x) if isinstance(first, nn.Linear) else first(next(given), x, next(given))))
        return F.normalize(torch.stack(read, 1), dim=-1) if len(read) == 2 else read[0][:, 0]


def optimizers(net: Towers, lr: float) -> list[torch.optim.Optimizer]:
    """Adam for all weights; of the ids' vectors a step moves only those it read, for most are in none of its rows."""
    bags = [m.weight for m in net.first if isinstance(m, nn.EmbeddingBag)]
    rest = [p for p in net.parameters() if not any(p is q for q in bags)]
    return [torch.optim.Adam(rest, lr=lr), *([torch.optim.SparseAdam(bags, lr=lr)] if bags else [])]
