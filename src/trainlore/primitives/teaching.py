"""What one network's answers can teach another: whole, cut to the likeliest, or sampled. Unreduced, one value a place."""

from __future__ import annotations

import torch
from torch import Tensor

from trainlore.primitives.losses import targets


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of softmax(logits / temperature): (..., V) and (..., V) -> (...), in nats."""
    mine, theirs = _log_softmax(student / temperature), _log_softmax(teacher / temperature)
    return (theirs.exp() * (theirs - mine)).sum(-1)


def soft_cross_entropy(student: Tensor, shares: Tensor) -> Tensor:
    """-sum_v shares_v log softmax(student)_v: (..., V) and (..., V) -> (...)."""
    return -(shares * _log_softmax(student)).sum(-1)


def draws(teacher: Tensor, uniform: Tensor) -> Tensor:
    """Answers drawn with replacement from softmax(teacher): (..., V), numbers in [0, 1) (..., S) -> ids int64 (..., S).

    The share of the draws that fell on an answer is an unbiased estimate of its probability, however few the draws.
    """
    ladder = _log_softmax(teacher).exp().cumsum(-1)
    return torch.searchsorted(ladder, uniform.to(ladder) * ladder[..., -1:], right=True).clamp(
        max=teacher.shape[-1] - 1
    )


def uniforms(salt: int, rows: Tensor, places: int, samples: int) -> Tensor:
    """Numbers in [0, 1) named by salt, row, place and draw: rows int64 (B,) -> float32 (B, places, samples).

    A hash and not a stream: a row gets the same numbers whichever rows are computed with it, and on every device.
    """
    x = torch.arange(places * samples, device=rows.device) + (rows[:, None] << 32)
    x = (x ^ salt) * -7046029254386353131  # splitmix64, in signed arithmetic
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((x >> 40) & 0xFFFFFF).float().div(1 << 24).reshape(len(rows), places, samples)


def top_k(teacher: Tensor, k: int, renormalize: bool = False) -> tuple[Tensor, Tensor]:
    """The k likeliest answers and their probabilities, a biased summary: (..., V) -> ids (..., k), weights (..., k)."""
    weights, ids = _log_softmax(teacher).exp().topk(min(k, teacher.shape[-1]), dim=-1)
    return ids, weights / weights.sum(-1, keepdim=True) if renormalize else weights


def sparse_cross_entropy(student: Tensor, ids: Tensor, weights: Tensor | None = None) -> Tensor:
    """-sum_s weights_s log softmax(student)[ids_s]: (..., V), (..., S), (..., S) -> (...). Without weights, the mean."""
    picked = _log_softmax(student).gather(-1, ids)
    return -(picked.mean(-1) if weights is None else (weights * picked).sum(-1))


def where_trained(kind: str, batch: dict, values: Tensor) -> Tensor:
    """Values (...) in the shape of the model's own losses, 0 where it has no target: (B,) stays, (B,T) is masked."""
    if values.dim() == 1:
        return values
    return torch.where(targets(kind, batch) != -100, values, torch.zeros_like(values))
