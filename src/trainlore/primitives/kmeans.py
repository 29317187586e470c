"""k-means of many rows: seeded and settled on a sample of them, then a few rounds over all."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad

__all__ = ["k_means"]

SAMPLE = 256  # rows a cluster that the centres are found on
BLOCK = 1024  # rows compared with the centres at a time: they stay in the processor's cache


def k_means(
    points: np.ndarray, clusters: int, rng: np.random.Generator, rounds: int = 100, tolerance: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows (N, D) into clusters of small squared distance: the cluster of each int64 (N,), the centres float32 (K, D).

    The centres start as k-means++ puts them and move by Lloyd's rounds on at most 256 rows a cluster, drawn at random,
    until a round lowers the mean squared distance by less than `tolerance` of it or after `rounds`; then, where there are
    more rows, by the same rounds on all of them, of which few are left to do. Memory beyond the rows: three numbers a row.
    """
    x = np.ascontiguousarray(points, dtype=np.float32)
    if x.ndim != 2 or not 1 <= clusters <= len(x):
        raise Bad(f"clusters={clusters}: give 1 to {len(x)}, the number of rows, and rows of numbers")
    middle = x.mean(0, dtype=np.float64).astype(np.float32)  # distances by products lose the digits that all rows share
    some = x if len(x) <= SAMPLE * clusters else x[np.sort(rng.choice(len(x), SAMPLE * clusters, replace=False))]
    label, centres = _settled(some, middle, _seeded(torch.from_numpy(some - middle), clusters, rng), rounds, tolerance)
    if some is not x:
        label, centres = _settled(x, middle, centres, rounds, tolerance)
    return label.numpy(), centres.numpy() + middle


def _seeded(x: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Greedy k-means++: of a few rows drawn in proportion to the squared distance to what there is, the one that helps most."""
    squares, trials = x.square().sum(1), 2 + int(np.log(k))
    chosen = [int(rng.integers(len(x)))]
    left = _distances(x, squares, x[chosen])[:, 0]
    for _ in range(1, k):
        total = left.double().cumsum(0)
        drawn = torch.searchsorted(total, torch.from_numpy(rng.random(trials)) * total[-1]).clamp(max=len(x) - 1)
        after = torch.minimum(_distances(x, squares, x[drawn]), left[:, None])
        best = int(after.double().sum(0).argmin())
        chosen.append(int(drawn[best]))
        left = after[:, best]
    return x[chosen]


def _distances(x: Tensor, squares: Tensor, centres: Tensor) -> Tensor:
    """Squared distances (N, K) of rows with these squared lengths (N,)."""
    return torch.addmm(centres.square().sum(1), x, centres.T, alpha=-2).add_(squares[:, None]).clamp_(min=0)


def _settled(
    x: np.ndarray, middle: np.ndarray, centres: Tensor, rounds: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """The cluster of each row (N,) and the centres (K, D), around the middle, after Lloyd's rounds."""
    before = np.inf
    for _ in range(rounds):
        label, far, sums = _nearest(x, middle, centres)
        now = float(far.double().mean())
        if before - now <= tolerance * now:
            return label, centres
        size = torch.bincount(label, minlength=len(centres))
        empty = (size == 0).nonzero()[:, 0]
        centres = (sums / size.clamp(min=1)[:, None]).float()
        if len(empty):  # a centre without rows takes the place of a row that is far from its own
            centres[empty] = torch.from_numpy(x[far.topk(len(empty)).indices.numpy()] - middle)
        before = now
    return _nearest(x, middle, centres)[0], centres


def _nearest(x: np.ndarray, middle: np.ndarray, centres: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The nearest centre of each row (N,), its squared distance (N,), and the sum of each centre's rows float64 (K, D)."""
    from scipy.sparse import csr_matrix

    label, far = torch.empty(len(x), dtype=torch.long), torch.empty(len(x))
    half, sums = centres.square().sum(1) / 2, np.zeros(centres.shape)
    for at in range(0, len(x), BLOCK):
        rows = torch.from_numpy(x[at : at + BLOCK] - middle)
        short, mine = torch.addmm(half, rows, centres.T, alpha=-1).min(1)  # half the distance, less what all share
        label[at : at + BLOCK] = mine
        far[at : at + BLOCK] = (2 * short + rows.square().sum(1)).clamp_(min=0)
        starts = np.concatenate([[0], np.cumsum(np.bincount(mine.numpy(), minlength=len(centres)))])
        entries = np.ones(len(rows), np.float32), mine.argsort(stable=True).numpy(), starts
        sums += csr_matrix(entries, (len(centres), len(rows))) @ rows.numpy()
    return label, far, torch.from_numpy(sums)
