"""Trainings that try hyperparameters: which may be tried, and one of them with its score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Measure, Part

ENGINE = ("lr", "weight_decay")  # tunable without a part
Range = tuple[float, float]


def tuned(tune: Mapping[str, Range] | None, lr: float, inner: Sequence[Part]) -> dict[str, Range]:
    """The hyperparameters to try and their ranges, each 0 < low <= high; with none given lr, within 10 times.

    A name is lr, weight_decay, or part.field of one of the parts. Raises Bad for any other, and for other ranges.
    """
    ranges = dict(tune) if tune else {"lr": (lr / 10, lr * 10)}
    fields = {f"{_name(p)}.{f.name}" for p in inner for f in dataclasses.fields(p)}  # type: ignore[arg-type]
    for name, (low, high) in ranges.items():
        if name not in ENGINE and name not in fields:
            raise Bad(f"tune: {name} is neither lr nor weight_decay nor a field of a part in `inner`")
        if not 0 < low <= high:
            raise Bad(f"tune: the range of {name} must be 0 < low <= high, not {low} to {high}")
    return ranges


def scored(
    run: Run,
    one: Model,
    data: Data,
    values: Mapping[str, float],
    inner: Sequence[Part],
    judge: Measure,
    held_out: Data,
    *key: Any,
    **how: Any,
) -> float:
    """Train a model in place and judge it: the first metric of the report, higher is better; NaN if the training diverged.

    values: hyperparameters in the place of `how`, which is for `run.fit`, and of the fields of the parts. key: names the
    order of the rows. Every fit of a run draws the same positions; in another order these are other rows.
    """
    parts = []
    for p in inner:
        start = f"{_name(p)}."
        mine = {k.removeprefix(start): v for k, v in values.items() if k.startswith(start)}
        parts.append(dataclasses.replace(p, **mine))  # type: ignore[type-var]
    engine = {k: v for k, v in values.items() if k in ENGINE}
    order = run.numpy(*key).permutation(len(data))
    try:
        run.fit(one, data.take(order), *parts, **how | engine)
    except Bad as gone:
        if type(gone).__name__ != "Diverged":
            raise
        return float("nan")
    measured = run.step(judge, one, held_out).measured[0]
    return -measured.value if measured.better == "lower" else measured.value


def _name(part: Part) -> str:
    return str(getattr(type(part), "card", {}).get("name", ""))
