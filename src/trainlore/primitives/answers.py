"""A teacher's answers by draws, kept with what they are about: drawn alike whichever rows are drawn with, known again later."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives.teaching import draws, uniforms

ANSWERS, ABOUT = (
    "sparse_answers",
    "sparse_answers_about",
)  # columns: answers drawn, and a number for the row they are about


def drawn(logits: Tensor, salt: int, rows: Tensor, samples: int) -> Tensor:
    """Answers at every place, named by salt, row and place: logits (B, ..., V), rows (B,) -> ids (B, ..., samples)."""
    uniform = uniforms(salt, rows, logits[0, ..., 0].numel(), samples)
    return draws(logits, uniform.reshape(*logits.shape[:-1], samples))


def fingerprint(values: Tensor, real: Tensor | None = None) -> Tensor:
    """A number for each row of tokens or features (B, ...) -> int64 (B,): equal rows alike, others almost surely not.

    real (B,T): 1 where a token is one and not padding, so that a row padded further is still the same row."""
    flat = values.reshape(len(values), -1)
    if flat.is_floating_point():
        flat = flat.float().contiguous().view(torch.int32)
    place = torch.arange(1, flat.shape[1] + 1, device=flat.device) * -7046029254386353131
    place = (place ^ (place >> 29)) * -4658895280553007687
    counted = flat.long() + 1 if real is None else (flat.long() + 1) * real
    return (counted * (place | 1)).sum(1)


def choices(kind: str, who: str) -> None:
    """Refuse a kind of model whose outputs are no logits of classes or tokens."""
    if kind in ("regressor", "encoder", "denoiser"):
        raise Bad(f"{who} is about choices among classes or tokens, which a {kind} model does not make")


def places(kind: str, data: Data) -> np.ndarray:
    """At how many places a model of this kind answers about each row: int64 (N,)."""
    if kind == "classifier":
        return np.ones(len(data), np.int64)
    length = np.diff(data.lists("labels" if kind == "seq2seq" else "input_ids")[1])
    return np.maximum(length - 1, 0) if kind == "causal" else length
