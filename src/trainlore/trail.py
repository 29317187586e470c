"""The story of one row, or of a model, through a run: what kept, dropped, rewrote or weighed it, and with which score."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.store import Store

SHOWN = 3  # of the rows one row was made into


def as_json(value: Any) -> str:
    """JSON for other programs: what is no number is null, for which JSON has a word."""

    def plain(one: Any) -> Any:
        if isinstance(one, dict):
            return {k: plain(v) for k, v in one.items()}
        if isinstance(one, list | tuple):
            return [plain(v) for v in one]
        return None if isinstance(one, float) and not math.isfinite(one) else one

    return json.dumps(plain(value), indent=1)


def opened(folder: Path) -> tuple[dict[str, Any], Store]:
    """A run's record and its store."""
    path = folder / "run.json"
    if not path.exists():
        raise Bad(f"{folder} is not a run: it has no run.json")
    return json.loads(path.read_text()), Store(folder.resolve().parent / ".store")


def curations(folder: Path) -> list[dict[str, Any]]:
    """The finished steps that made data of data, each with its Data in `out` and the name of what it read in `from`."""
    record, store = opened(folder)
    steps = [s for s in record["steps"] if s["kind"] == "Curate" and store.has(s["key"])]
    return [{**s, "from": s["wires"]["data"], "out": store.get(s["key"])} for s in steps]


def row(folder: Path, id: int, start: str | None = None) -> list[dict[str, Any]]:
    """What happened to the row with this id of the noun `start` (by default the first data of the recipe).

    One object a step: step, noun, what (kept, dropped, made into n rows), scores (new columns), text (the row as it left)."""
    steps = curations(folder)
    if not steps:
        raise Bad(f"{folder} has no finished step that changed data")
    start = start or steps[0]["from"]
    if start not in {s["from"] for s in steps}:
        raise Bad(f"no step read ${start}; data were read from {', '.join(sorted({'$' + s['from'] for s in steps}))}")
    if not _has(folder, steps, start, id):
        raise Bad(f"${start} has no row {id}")
    story: list[dict[str, Any]] = []
    alive: dict[str, list[int]] = {start: [id]}
    for step in steps:
        out: Data = step["out"]
        whole, left = out.whole(), []  # of this row, what the step gives
        for one in alive.get(step["from"], [])[:SHOWN]:
            line: dict[str, Any] = {"step": step["number"], "method": step["name"], "noun": step["as"], "row": one}
            if step.get("made"):
                children = _children(out, one)
                line |= {
                    "what": f"made into {len(children)} row{'s' if len(children) != 1 else ''}"
                    if len(children)
                    else "dropped",
                    "scores": {},
                }
                left += children.tolist()
                line["text"] = _text(out, np.flatnonzero(np.isin(out.ids, children))[:1])
            else:
                here, there = np.flatnonzero(out.ids == one), np.flatnonzero(whole.ids == one)
                if not len(there):
                    continue
                line["what"] = "kept" if len(here) else "dropped"
                scores = {c: out.table[c][int(there[0])].as_py() for c in step.get("columns") or []}
                line["scores"] = {k: v for k, v in scores.items() if isinstance(v, int | float | str | bool)}
                line["text"] = _text(whole, there[:1])
                left += [one] if len(here) else []
            story.append(line)
        if step["from"] in alive:
            alive[step["as"]] = left  # a name may be given anew
    return story


def _has(folder: Path, steps: list[dict[str, Any]], start: str, id: int) -> bool:
    """Whether the noun had this row when it was first read."""
    at = next(i for i, s in enumerate(steps) if s["from"] == start)
    maker = next((s for s in reversed(steps[:at]) if s["as"] == start), None)
    if maker is not None:
        return id in maker["out"].ids
    if not steps[at].get("made"):
        return id in steps[at]["out"].whole().ids
    if len(_children(steps[at]["out"], id)):
        return True
    from trainlore import recipe
    from trainlore.given import given

    try:
        spec = recipe.read(folder / "recipe.yaml").spec
        return id in given(start, spec.given[start], spec.seed).get().ids
    except (Bad, OSError, KeyError):  # the source is no longer there: the step's count has to do
        return 0 <= id < steps[at]["rows_in"]


def _children(out: Data, parent: int) -> np.ndarray:
    """Ids of the rows made from this one; `parents` holds one id or a list of them a row."""
    try:
        values, offsets = out.lists("parents")
    except ValueError:
        return out.ids[np.asarray(out["parents"]) == parent]
    owner = np.repeat(np.arange(len(out)), np.diff(offsets))
    return out.ids[np.unique(owner[values == parent])]


def _text(data: Data, at: np.ndarray) -> str:
    if not len(at):
        return ""
    part = data.take(at)
    for column in ("text", "prompt"):
        if column in part.columns:
            return next(part.text(column))[:240]
    return ""


def model(folder: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The steps that made a model of the run (by default the last one)."""
    record, _ = opened(folder)
    made = {s["as"]: s for s in record["steps"] if s.get("noun") == "Model"}
    if not made:
        raise Bad(f"{folder} has no finished model yet")
    name = name or list(made)[-1]
    if name not in made:
        raise Bad(f"no model ${name}; there are {', '.join('$' + m for m in made)}")
    story: list[dict[str, Any]] = []
    steps = list(record["steps"])
    while name is not None:
        at = next(
            (i for i in range(len(steps) - 1, -1, -1) if steps[i]["as"] == name and steps[i].get("noun") == "Model"),
            None,
        )
        if at is None:
            break
        story.append(steps[at])
        name, steps = steps[at]["wires"].get("model"), steps[:at]
    return story[::-1]
