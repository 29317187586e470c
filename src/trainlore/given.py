"""Nouns by name: those that a recipe is given from outside, and those that its steps make; fetched when somebody wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from trainlore import store
from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.nouns.columns import gathered_table
from trainlore.registry import near
from trainlore.runs import Run
from trainlore.sources import PRESETS, noun_of
from trainlore.units import amount


class Noun:
    """A noun by the key of what made it, fetched when somebody wants it."""

    def __init__(self, key: str, fetch: Callable[[], Any]) -> None:
        self.key, self.fetch, self.gone = key, fetch, False
        self.value: Any = None

    def get(self) -> Any:
        if self.value is None:
            self.value = self.fetch()
        return self.value

    def forget(self) -> None:
        self.value, self.gone = None, True


def given(name: str, source: Any, seed: int) -> Noun:
    """A noun from outside. Data is known by its content, a preset by its name, a folder by its weights."""
    noun = noun_of(source)
    options = dict(source) if isinstance(source, dict) else {}
    what = options.pop(noun.lower(), source)
    if noun == "Data":
        skip, rows, sample = (_count(name, k, options.pop(k, None)) for k in ("skip", "rows", "sample"))
        share = options.pop("share", None)
        _known(name, options, ("errors",), "data, share, skip, rows, sample, errors")
        data = Data.of(what, **options)
        if share is not None:
            data = _shared(name, data, share)
        if skip is not None or rows is not None:
            if (skip or 0) >= len(data):
                raise Bad(f"given {name}: skip {skip} leaves nothing of {len(data)} rows")
            data = Data(data.table.slice(skip or 0, rows))
        if sample is not None:  # a table of its own, so that what is added later is as long as the sample
            rows_ = np.sort(Run(seed).numpy("given", name).permutation(len(data))[:sample])
            data = Data(gathered_table(data.table, rows_), base_ids=rows_)
        return Noun(store.hash_of("data", data.fingerprint), lambda: data)
    text = str(what).removeprefix("preset:")
    if text in PRESETS:
        from trainlore.nouns.hugging import fields, preset

        _known(name, options, fields(text), ", ".join(("model", "seed", "vocab", "window", *PRESETS[text][1])))
        options.setdefault("seed", seed)
        return Noun(store.hash_of("preset", text, options), lambda: preset(text, **options))
    _known(name, options, ("kind", "seed", "remote_code"), "model, kind, seed, remote_code")
    model = Model.of(what, **options)
    return Noun(store.hash_of("model", model.fingerprint), lambda: model)


def _shared(name: str, data: Data, share: Any) -> Data:
    """The rows whose own number between 0 and 1 lies in [low, high): shares that do not meet have no row in common."""
    low, high = share if isinstance(share, list | tuple) and len(share) == 2 else (None, None)
    if not (isinstance(low, int | float) and isinstance(high, int | float) and 0 <= low < high <= 1):
        raise Bad(f"given {name}: share is [low, high] between 0 and 1, not {share!r}")
    place = Run(0).numpy("given", "share").permutation(len(data)) / max(1, len(data))
    rows = np.flatnonzero((place >= low) & (place < high))
    if not len(rows):
        raise Bad(f"given {name}: share {share} leaves nothing of {len(data)} rows")
    return Data(gathered_table(data.table, rows), base_ids=rows)


def _known(name: str, options: dict[str, Any], known: Any, shown: str) -> None:
    if lost := [k for k in options if k not in known]:
        raise Bad(f"given {name}: no option {lost[0]!r}" + (near(lost[0], known) or f"; there are {shown}"))


def _count(name: str, what: str, value: Any) -> int | None:
    """A number of rows as people write it."""
    try:
        number = None if value is None else amount(value)
    except Bad as error:
        raise Bad(f"given {name}: {what}: {error}") from None
    if number is not None and (number < 1 or number != int(number)):
        raise Bad(f"given {name}: {what} must be a whole number above 0, not {value!r}")
    return None if number is None else int(number)
