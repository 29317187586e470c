"""Perturbations of inputs: numbers (features, pixels) and token ids. Randomness comes from the generator given.

All draws are made on the generator's device and moved, so that the numbers are the same wherever the tensors live.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def _uniform(shape: torch.Size | tuple[int, ...], rng: torch.Generator, like: Tensor) -> Tensor:
    return torch.rand(shape, generator=rng, device=rng.device).to(like.device)


def gaussian(x: Tensor, scale: float, rng: torch.Generator) -> Tensor:
    """`x` (any shape, floating) plus normal noise of standard deviation `scale`."""
    return x + scale * torch.randn(x.shape, generator=rng, device=rng.device).to(x)


def dropout(x: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """`x` (any shape) with about `share` of its entries set to zero; the others keep their size."""
    return torch.where(_uniform(x.shape, rng, x) < share, torch.zeros_like(x), x)


def replace(ids: Tensor, mask: Tensor, share: float, vocabulary: int, rng: torch.Generator) -> Tensor:
    """Token ids (B, T) with about `share` of the real ones (mask 1) exchanged for ids drawn evenly below `vocabulary`."""
    chosen = (_uniform(ids.shape, rng, ids) < share) & mask.bool()
    other = torch.randint(vocabulary, ids.shape, generator=rng, device=rng.device).to(ids)
    return torch.where(chosen, other, ids)


def drop(ids: Tensor, mask: Tensor, share: float, rng: torch.Generator, pad: int = 0) -> tuple[Tensor, Tensor]:
    """Leave out about `share` of the real tokens and close the gaps: (ids, mask), both (B, T). One token a row stays."""
    luck = _uniform(ids.shape, rng, ids).masked_fill(~mask.bool(), -1.0)
    stays = (luck >= share) | ((luck == luck.amax(1, keepdim=True)) & mask.bool())
    order = (~stays).to(torch.int8).argsort(dim=1, stable=True)  # the kept ones first, in the order they had
    kept = stays.gather(1, order)
    return ids.gather(1, order).masked_fill(~kept, pad), kept.to(mask.dtype)


def tfidf(values: np.ndarray, offsets: np.ndarray, vocabulary: int) -> tuple[np.ndarray, np.ndarray]:
    """What TF-IDF replacement needs to know of a corpus of token rows.

    values: ids (sum of lengths,); offsets: int64 (N+1,).
    Returns the inverse document frequency of every id, float64 (V,), and the odds with which an id replaces another,
    float64 (V,) adding up to 1: the less an id tells (its tf-idf summed over rows), the likelier it is put in.
    """
    n, lengths = len(offsets) - 1, np.diff(offsets)
    row = np.repeat(np.arange(n), lengths)
    seen = np.unique(row * vocabulary + values) % vocabulary
    documents = np.bincount(seen, minlength=vocabulary)
    with np.errstate(divide="ignore"):
        idf = np.where(documents > 0, np.log(n / np.maximum(documents, 1)), 0.0)
    told = np.bincount(values, weights=idf[values] / lengths[row], minlength=vocabulary)
    odds = np.where(documents > 0, told.max(initial=0.0) - told, 0.0)
    total = odds.sum()
    return idf, odds / total if total > 0 else (documents > 0) / max(1, (documents > 0).sum())


def tfidf_shares(ids: Tensor, mask: Tensor, idf: Tensor, share: float) -> Tensor:
    """How likely each token is to be replaced, (B, T): `share` on average over a row, more where tf-idf is low.

        p_i = share * n * (max_j s_j - s_i) / sum_j (max_j s_j - s_j),   s_i = count(w_i) / n * idf(w_i)

    over the n real tokens of the row. A row whose tokens all tell alike is replaced evenly.
    """
    real = mask.bool()
    same = (ids[:, :, None] == ids[:, None, :]) & real[:, None, :]
    length = real.sum(1, keepdim=True)
    told = same.sum(2) / length.clamp(min=1) * idf.to(ids.device)[ids]
    gap = (told.masked_fill(~real, -torch.inf).amax(1, keepdim=True) - told).masked_fill(~real, 0.0)
    total = gap.sum(1, keepdim=True)
    even = torch.full_like(gap, share)
    return (
        torch.where(total > 0, share * length * gap / total.clamp(min=1e-12), even)
        .masked_fill(~real, 0.0)
        .clamp(max=1.0)
    )


def tfidf_replace(ids: Tensor, mask: Tensor, idf: Tensor, odds: Tensor, share: float, rng: torch.Generator) -> Tensor:
    """Token ids (B, T) with telling words left alone and the others exchanged, by `tfidf` odds (V,), for ones that tell little."""
    chosen = _uniform(ids.shape, rng, ids) < tfidf_shares(ids, mask, idf, share)
    ladder = odds.double().cumsum(0)
    at = torch.rand(ids.shape, generator=rng, device=rng.device, dtype=torch.float64) * ladder[-1].item()
    other = torch.searchsorted(ladder.to(at.device), at, right=True).clamp(max=len(odds) - 1)
    return torch.where(chosen, other.to(ids), ids)
