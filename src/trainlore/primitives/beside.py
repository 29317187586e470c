"""Rows without labels that come along with labelled ones: drawn, carried in the batch so that they are split with it, and read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trainlore.nouns import Batch, Data, Model


def readable(model: Model, rows: Data) -> Data:
    """The rows as the model reads them: text is encoded, and cut to the model's window."""
    return model.encode(rows, truncate=True) if model.input == "input_ids" and "input_ids" not in rows.columns else rows


def fetched(model: Model, rows: Data, n: int, generator: torch.Generator) -> Batch:
    """A batch of n of these rows, drawn with replacement, as the model reads them."""
    some = torch.randint(len(rows), (n,), generator=generator).numpy()
    return readable(model, rows.take(some)).batch(range(n), model)


def carried(mark: str, rows: Batch, n: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Those of the columns of these rows that are `names`, n groups of equal size, under names that begin with `mark`."""
    return {f"{mark}_{k}": rows[k].unflatten(0, (n, -1)) for k in names if k in rows}


def unpacked(mark: str, batch: Batch) -> Batch:
    """The rows that a batch carries under a mark, as they were before they were carried."""
    return {k.removeprefix(f"{mark}_"): x.flatten(0, 1) for k, x in batch.items() if k.startswith(f"{mark}_")}
