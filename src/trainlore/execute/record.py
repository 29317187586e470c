"""run.json, the state of a run, and what its numbers depend on beside the recipe."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

from trainlore import store
from trainlore.recipe import Recipe, Step
from trainlore.runs import Run

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "pyarrow", "numpy", "scipy", "scikit-learn", "peft")


class Book:
    """run.json: the state of the run, written whole after every step."""

    def __init__(self, recipe: Recipe, run: Run, folder: Path | None) -> None:
        self.recipe, self.run, self.folder = recipe, run, folder
        self.record: dict[str, Any] = {
            "name": recipe.spec.name,
            "seed": recipe.spec.seed,
            "started": time.time(),
            "state": "running",
            "recipe_hash": store.hash_of(recipe.text),
            "environment": environment() if folder is not None else {},
            "total": len(recipe.steps),
            "steps": [],
        }
        self.write()
        self.enter()

    def begin(self, number: int, step: Step, key: str) -> None:
        self.record["current"] = {"number": number, "name": step.name, "as": step.gives, "key": key}
        self.write()

    def add(self, number: int, step: Step, key: str, record: dict[str, Any]) -> None:
        self.record.pop("current", None)
        wires = {"fields": step.fields, "wires": step.wires, "with": [{n: f} for n, f in step.parts]}
        self.record["steps"].append(
            {"number": number, "name": step.name, "kind": step.kind, "as": step.gives, "key": key, **wires, **record}
        )
        self.write()

    def close(self, state: str, error: str = "") -> None:
        self.record |= {"state": state, "ended": time.time(), "meter": self.run.meter.state(), "error": error}
        self.write()
        self.enter()

    def enter(self) -> None:
        """The run's line in the ledger."""
        if self.folder is not None:
            brief = {"steps": len(self.record["steps"]), "work": self.run.meter.work}
            whole = self.folder.resolve()
            store.enter(whole.parent, whole, self.record["name"], self.record["state"], brief)

    def write(self) -> None:
        if self.folder is not None:
            store.write(self.folder / "run.json", json.dumps(self.record, indent=1, default=store.jsonable))


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on beside the recipe."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from trainlore import __version__
    from trainlore.claims import commit

    packages = {}
    for name in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "trainlore": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **packages,
    }
