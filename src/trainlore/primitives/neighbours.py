"""Exact nearest neighbours by cosine, a block of rows against a block of rows at a time."""

from __future__ import annotations

import torch

from trainlore.errors import Bad

__all__ = ["nearest"]

_BLOCK = 2048  # rows a side: a block of similarities is 16 MB in float32


def nearest(
    queries: torch.Tensor, k: int, keys: torch.Tensor | None = None, block: int = _BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k rows of `keys` (M, D) of highest cosine with each row of `queries` (N, D): similarity and position, (N, k) each.

    Highest first. Without `keys` the queries look among themselves and no row is its own neighbour. A row of zeros has
    cosine 0 with everything. Memory beyond the result: `block` x (`block` + 2k) numbers and a copy of the rows, whatever N is.
    """
    own = keys is None
    x = torch.nn.functional.normalize(queries.float(), dim=1)
    y = x if keys is None else torch.nn.functional.normalize(keys.float(), dim=1)
    most = len(y) - own
    if not 1 <= k <= most:
        raise Bad(f"k={k}: there are {most} rows to be a neighbour of; give 1 to {most}")
    near, where = [], []
    for i in range(0, len(x), block):
        some = x[i : i + block]
        best = some.new_full((len(some), 0), 0.0)
        at = torch.zeros(len(some), 0, dtype=torch.long, device=x.device)
        for j in range(0, len(y), block):
            cosine = some @ y[j : j + block].T
            if own and i == j:
                cosine.fill_diagonal_(-torch.inf)
            top = cosine.topk(min(k, cosine.shape[1]), dim=1)
            best, at = torch.cat([best, top.values], 1), torch.cat([at, top.indices + j], 1)
            top = best.topk(min(k, best.shape[1]), dim=1)
            best, at = top.values, at.gather(1, top.indices)
        near.append(best)
        where.append(at)
    return torch.cat(near), torch.cat(where)
