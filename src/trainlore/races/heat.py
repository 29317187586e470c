"""One arm with one seed, in a folder and a process of its own: it finishes, is paused, or fails, and says so in heat.json."""

from __future__ import annotations

import functools
import importlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from trainlore import store as stores
from trainlore.errors import Bad

FINISHED, PAUSED, FAILED = "finished", "paused", "failed"


NEEDED = ("transformers.modeling_utils", "trainlore.execute", "trainlore.loop", "trainlore.nouns.hugging")


def warm() -> None:
    """Import what every heat needs, where the worker does not have it yet."""
    for name in NEEDED:
        importlib.import_module(name)


def run(task: dict[str, Any]) -> dict[str, Any]:
    """Run the heat that `task` describes (see `conduct.task_of`), or go on with it; give what heat.json holds."""
    import torch

    from trainlore.memory import keep_freed
    from trainlore.spikes import Diverged

    folder = Path(task["folder"])
    if (done := ended(folder)) is not None:
        return done
    keep_freed()
    torch.set_num_threads(task["threads"])
    start = time.perf_counter()
    try:
        found = _executed(task, folder)
    except KeyboardInterrupt as stop:
        from trainlore.runs import Interrupted

        if not isinstance(stop, Interrupted):
            raise
        return {"state": PAUSED, "track": track(folder), **_bill(folder), "clock": time.perf_counter() - start}
    except Exception as error:  # whatever a method does, it loses this heat and not the race
        text = str(error).strip().splitlines()
        found = {
            "state": FAILED,
            "error": (f"{type(error).__name__}: " if not isinstance(error, Bad) else "") + (text[0] if text else ""),
        }
        found["cannot"] = isinstance(error, Bad) and not isinstance(error, Diverged)  # with any seed, then
        if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
            found["error"] = "out of memory: " + found["error"]
        found |= _bill(folder) if (folder / "run.json").exists() else {}
    found |= {"clock": time.perf_counter() - start, "track": track(folder)}
    stores.write(folder / "heat.json", json.dumps(found))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return found


def ended(folder: Path) -> dict[str, Any] | None:
    """What heat.json says of a heat that finished or failed, or None."""
    path = folder / "heat.json"
    return json.loads(path.read_text()) if path.exists() else None


def track(folder: Path) -> dict[str, Any]:
    """What was seen of the training so far: `points` evenly along it, and `at`, the last look."""
    path = folder / "track.json"
    return json.loads(path.read_text()) if path.exists() else {"points": [], "at": None, "looked": 0.0}


@functools.lru_cache(maxsize=16)
def _data(root: str, key: str) -> Any:
    """Data of the store, read once by each process; its columns are memory-mapped and shared by all."""
    return stores.Store(Path(root)).get(key)


def ready(root: str, nouns: dict[str, list[str]]) -> dict[str, Any]:
    """The nouns that were there before the heat, by name, from [key, kind]; nothing is read before it is asked for."""
    from trainlore.given import Noun

    def fetch(key: str, kind: str) -> Any:
        return (
            functools.partial(_data, root, key)
            if kind == "Data"
            else functools.partial(stores.Store(Path(root)).get, key)
        )

    return {name: Noun(key, fetch(key, kind)) for name, (key, kind) in nouns.items()}


def _executed(task: dict[str, Any], folder: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from trainlore import recipe as recipes
    from trainlore.building import build
    from trainlore.execute import Heat, execute
    from trainlore.races.track import Track

    nouns = ready(task["store"], task["ready"])
    watchers: tuple[Any, ...] = ()
    if task["watched"]:
        judge = rows = None
        for name, body in task["valid"].items():
            judge = build(name, {k: v for k, v in body.items() if k not in ("model", "data", "as")}, nouns)
            rows = nouns[body["data"].removeprefix("$")].get()
        watchers = (
            Track(judge=judge, rows=rows, to=folder / "track.json", points=task["points"], pause=task["pause"]),
        )
    heat = Heat(nouns, Path(task["store"]), task["watched"], watchers, task["budget"], alone=False)
    made = recipes.read(task["recipe"])
    report = execute(made, folder, resume=(folder / "run.json").exists(), heat=heat)["verdict"]
    first = report.measured[0]
    if first.better not in ("higher", "lower"):
        raise Bad(f"metric {first.metric!r} has no better side, so it cannot rank: choose another")
    if not np.isfinite(first.values).all():
        raise Bad(f"{first.metric} is not a number on {int((~np.isfinite(first.values)).sum())} of the test rows")
    weights = first.weights if first.weights is not None else np.ones(len(first.values))
    ids = first.rows if first.rows is not None else np.arange(len(first.values))
    pq.write_table(
        pa.table({"row": np.asarray(ids), "value": first.values, "weight": weights}), folder / "outcomes.parquet"
    )
    return {
        "state": FINISHED,
        "score": first.value,
        "metric": first.metric,
        "better": first.better,
        "weighted": first.weights is not None,
        **_bill(folder),
    }


def _bill(folder: Path) -> dict[str, Any]:
    """What the arm's own steps cost, the test left out, and what they did."""
    record = json.loads((folder / "run.json").read_text())
    steps = [s for s in record["steps"] if s["as"] != "verdict"]
    bill = {k: sum(s.get(k, 0) for s in steps) for k in ("steps", "work", "tokens", "rows", "seconds")}
    bill["seconds"] -= track(folder)["looked"]
    bill["peak"] = max((s["peak"] for s in record["steps"]), default=0)
    shown = ("name", "as", "seconds", "work", "effects", "rows_in", "cached")
    did = [{k: s[k] for k in shown if k in s} | {"rows": s.get("data", {}).get("rows")} for s in steps]
    curve = next((s["curve"] for s in reversed(steps) if s.get("curve")), None)
    if curve:
        thin = max(1, len(curve["t"]) // 100)
        curve = {k: v[::thin] for k, v in curve.items()}
    return {"bill": bill, "did": did, "curve": curve, "test_seconds": _seconds(record)}


def _seconds(record: dict[str, Any]) -> float:
    return sum(s["seconds"] for s in record["steps"] if s["as"] == "verdict")


def outcomes(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows (N,), values (N,) and weights (N,) of a finished heat."""
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "outcomes.parquet")
    return tuple(table[c].to_numpy() for c in ("row", "value", "weight"))  # type: ignore[return-value]
