"""Asking for labels: whose answers there are, who is told what, and when two networks agree."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["answers", "filled", "kappa"]


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two labellings (N,): agreement beyond what the labels' frequencies alone would give, up to 1."""
    _, codes = np.unique(np.concatenate([first, second]), return_inverse=True)
    a, b = np.split(codes, 2)
    chance = float((np.bincount(a, minlength=codes.max() + 1) * np.bincount(b, minlength=codes.max() + 1)).sum())
    chance /= len(a) ** 2
    return 1.0 if chance == 1 else (float((a == b).mean()) - chance) / (1 - chance)


def answers(pool: Data, oracle: str | Data, ids: str | None, who: str) -> dict[int, int]:
    """The label of each row of the pool that has one, by its id.

    oracle: a column of the pool, or rows of `row` and `label`, or their file; of several on one row the last counts.
    ids: the pool's column that `row` speaks of; none: the rows' own ids.
    """
    if len(np.unique(pool.ids)) < len(pool):
        raise Bad("the pool holds a row twice: take each once")
    if isinstance(oracle, str) and oracle in pool.columns:
        return dict(zip(pool.ids.tolist(), _whole(pool, oracle, who), strict=True))
    if isinstance(oracle, str) and "." not in oracle:
        there = ", ".join(pool.columns)
        raise Bad(f"oracle={oracle!r} is no column of the pool; there are {there}. Else give rows of row and label")
    told = Data.of(oracle)
    told.need("row", "label", who=f"{who}'s `oracle`")
    said = dict(zip(np.asarray(told["row"]).tolist(), _whole(told, "label", who), strict=True))
    names = np.asarray(pool.ids if ids is None else pool[ids]).tolist()
    return {i: said[n] for i, n in zip(pool.ids.tolist(), names, strict=True) if n in said}


def _whole(data: Data, column: str, who: str) -> list[int]:
    labels = np.asarray(data[column])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise Bad(f"{who}: column {column!r} holds {data.table[column].type}, not class numbers")
    return labels.tolist()


def filled(step: Any, values: Mapping[str, Any]) -> Any:
    """The method with those of the values that it has a field for."""
    has = {f.name for f in dataclasses.fields(step)}
    return dataclasses.replace(step, **{k: v for k, v in values.items() if k in has})
