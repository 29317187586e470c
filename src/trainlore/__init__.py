"""Trainlore: the executable literature of model training. Names are loaded when they are first touched."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "Batch": "nouns",
    "Data": "nouns",
    "Model": "nouns",
    "Report": "nouns",
    "Run": "runs",
    "Curate": "verbs",
    "Shape": "verbs",
    "Fit": "verbs",
    "Measure": "verbs",
    "Part": "verbs",
    "method": "verbs",
    "Bad": "errors",
    "fit": "plain",
    "run": "plain",
    "race": "plain",
    "load": "registry",
    "index": "registry",
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name in _NAMES:
        return getattr(import_module(f"trainlore.{_NAMES[name]}"), name)
    if name.startswith("_") or not name[:1].isupper():
        raise AttributeError(f"module 'trainlore' has no attribute {name!r}")
    return import_module("trainlore.registry").by_class(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
