"""Whether a training can run at all: its settings, its rows and its budget, looked at before the first step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.slots import fills
from trainlore.units import amount
from trainlore.verbs import Part


def prepared(model: Model, data: Data, truncate: bool) -> Data:
    """The data with token columns if the model reads tokens and there are none yet."""
    if not len(data):
        raise Bad("there are no rows to train on")
    if model.input == "input_ids" and not {"input_ids", "chosen_input_ids"} & set(data.columns):
        data = model.encode(data, truncate=truncate)
    elif model.input != "input_ids" and model.input not in data.columns:
        raise Bad(f"the model reads {model.input!r}; there are {', '.join(data.columns)}")
    if model.kind == "classifier" and {"label"} <= set(data.columns):
        labels, logits = data["label"], getattr(getattr(model.net, "config", None), "num_labels", None)
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.ndim == 1:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or (logits and high >= logits):
                raise Bad(
                    f"labels run from {low} to {high}; the model knows {f'0 to {logits - 1}' if logits else 'none below 0'}"
                )
        else:
            raise Bad(
                f"column 'label' holds {data.table['label'].type}, not class numbers: map them to 0, 1, 2, ... first"
            )
    return data


def sensible(parts: tuple[Any, ...], micro_batch: int | None, lr: float, weight_decay: float) -> None:
    """Raise Bad on settings that would train nothing, or away from the data."""
    for part in parts:
        if not isinstance(part, Part):
            raise Bad(f"{part!r:.60} is not a part of a training loop: give parts, made: EMA(decay=0.99)")
    if micro_batch is not None and micro_batch < 1:
        raise Bad(f"micro_batch must be at least 1, not {micro_batch}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise Bad(f"{name} must be a number of at least 0, not {value}")


def trainable(model: Model, data: Data, parts: tuple[Any, ...]) -> None:
    """Raise Bad on rows that a training cannot learn from, before it starts; what a part makes itself is not asked for."""
    columns, own = set(data.columns), any(fills(p, s) for p in parts for s in ("draw", "batch", "forward", "loss"))
    if "weight" in columns:
        weight = data["weight"]
        if not isinstance(weight, np.ndarray) or weight.ndim != 1:
            raise Bad(f"column 'weight' holds {data.table['weight'].type}, not numbers")
        if len(bad := data.ids[~(np.isfinite(weight) & (weight >= 0))]):
            raise Bad(f"column 'weight' must be at least 0; it is not in {len(bad):,} rows, the first {bad[0]}")
        if not weight.any():
            raise Bad("column 'weight' is zero in every row: nothing would be learned")
    if not own and model.input not in columns:
        raise Bad(
            "the rows are pairs of a chosen and a rejected answer: add a part that learns from them, such as `dpo`"
        )
    if not own and not {"label", "labels"} & columns:
        raise Bad(f"the rows have no column 'label' or 'labels' to learn; there are {', '.join(data.columns)}")
    if model.input == "features" and isinstance(data["features"], np.ndarray):
        first = next((m for m in model.net.modules() if isinstance(m, nn.Linear)), None)
        if (
            first is not None
            and type(model.net) is nn.Sequential
            and model.net[0] is first
            and data["features"].shape[-1] != first.in_features
        ):
            raise Bad(
                f"column 'features' has {data['features'].shape[-1]} numbers a row, the model reads {first.in_features}"
            )
    last = [m for m in model.net.modules() if isinstance(m, nn.Linear)][-1:]
    if model.kind == "classifier" and "label" in columns and last and not hasattr(model.net, "config"):
        if (high := int(data["label"].max())) >= last[0].out_features:
            raise Bad(f"labels run to {high}; the model knows 0 to {last[0].out_features - 1}")
    for column in ("input_ids", "chosen_input_ids", "rejected_input_ids"):
        if column not in columns:
            continue
        values, offsets = data.lists(column)
        longest, window = int(np.diff(offsets).max()), model.window
        if "segment_ids" not in columns and window is not None and longest > window:
            raise Bad(
                f"a row of {column!r} has {longest:,} tokens, the model's window is {window:,}: encode the rows anew"
            )
        table = getattr(model.net, "get_input_embeddings", lambda: None)()  # plain modules have no such method
        known = getattr(table, "num_embeddings", None)
        if known is not None and len(values) and not 0 <= values.min() <= values.max() < known:
            raise Bad(
                f"column {column!r} has tokens from {values.min()} to {values.max()}; the model knows 0 to {known - 1}"
            )
        labels = column.replace("input_ids", "labels")
        if labels in columns and not own and model.kind in ("causal", "masked", "tagger"):
            wanted, ends = data.lists(labels)
            if not np.array_equal(ends, offsets):
                raise Bad(
                    f"{labels!r} and {column!r} differ in length: each token has one label, -100 where none is learned"
                )
            if not (wanted != -100).any():
                raise Bad(f"column {labels!r} is -100 everywhere: no token would be learned")


def with_made(kinds: dict[str, str]) -> dict[str, str]:
    """The columns of the table and those that collating adds."""
    masks = {k.removesuffix("input_ids") + "attention_mask": "tokens" for k in kinds if k.endswith("input_ids")}
    return {**kinds, **masks}


def planned(data: Data, size: int, **budget: Any) -> tuple[int, tuple[str, float] | None]:
    """Steps to run, and the limit that ends them when it is not counted in steps. Raises Bad unless one budget is given."""
    given = {k: v for k, v in budget.items() if v is not None}
    if len(given) != 1:
        raise Bad(f"give one budget of {', '.join(budget)}" + (f", not {' and '.join(given)}" if given else ""))
    ((unit, raw),) = given.items()
    value = amount(raw)
    if not 0 < value < math.inf:
        raise Bad(f"{unit} must be above 0, not {raw}")
    if size < 1:
        raise Bad(f"batch_size must be at least 1, not {size}")
    if unit in ("seconds", "work"):
        return 1 << 40, (unit, value)
    if unit == "tokens":
        column = next((c for c in ("input_ids", "chosen_input_ids") if c in data.columns), None)
        if column is None:
            raise Bad("a budget in tokens needs token rows; give steps, epochs or rows")
        _, offsets = data.lists(column)
        value /= max(1.0, float(offsets[-1]) / len(data)) * size
    elif unit == "epochs":
        value = value * len(data) / size
    elif unit == "rows":
        value /= size
    return max(1, round(value)), None
