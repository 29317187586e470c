"""The story of one row, or of a model, through a run: what kept, dropped, rewrote or weighed it, and with which score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.store import Store

SHOWN = 3  # of the rows one row was made into


def opened(folder: Path) -> tuple[dict[str, Any], Store]:
    """A run's record and its store."""
    path = folder / "run.json"
    if not path.exists():
        raise Bad(f"{folder} is not a run: it has no run.json")
    return json.loads(path.read_text()), Store(folder.parent / ".store")


def curations(folder: Path) -> list[dict[str, Any]]:
    """The finished steps that made data of data, each with its Data in `out` and the name of what it read in `from`."""
    record, store = opened(folder)
    steps = [s for s in record["steps"] if s["kind"] == "Curate" and store.has(s["key"])]
    return [{**s, "from": s["wires"]["data"], "out": store.get(s["key"])} for s in steps]


def row(folder: Path, id: int, start: str | None = None) -> list[dict[str, Any]]:
    """What happened to the row with this id of the noun `start` (by default the first data of the recipe).

    One object a step: step, noun, what (kept, dropped, rewritten), scores (new columns), text (the row as it left)."""
    steps = curations(folder)
    if not steps:
        raise Bad(f"{folder} has no finished step that changed data")
    start = start or steps[0]["from"]
    if start not in {s["from"] for s in steps}:
        raise Bad(f"no step read ${start}; data were read from {', '.join(sorted({'$' + s['from'] for s in steps}))}")
    story: list[dict[str, Any]] = []
    alive: dict[str, list[int]] = {start: [id]}
    for step in steps:
        out: Data = step["out"]
        ids = out.ids
        base = np.arange(out.table.num_rows) if out.base_ids is None else out.base_ids
        for one in alive.get(step["from"], [])[:SHOWN]:
            line: dict[str, Any] = {"step": step["number"], "method": step["name"], "noun": step["as"], "row": one}
            if "parents" in (step.get("columns") or []):
                children = _children(out, one)
                line |= {
                    "what": f"made into {len(children)} row{'s' if len(children) != 1 else ''}"
                    if len(children)
                    else "dropped",
                    "scores": {},
                }
                alive.setdefault(step["as"], []).extend(children.tolist())
                line["text"] = _text(out, np.flatnonzero(np.isin(ids, children))[:1])
            else:
                here, there = np.flatnonzero(ids == one), np.flatnonzero(base == one)
                if not len(there):
                    if one == id and step["from"] == start:
                        raise Bad(f"${start} has no row {id}")
                    continue
                line["what"] = "kept" if len(here) else "dropped"
                scores = {c: out.table[c][int(there[0])].as_py() for c in step.get("columns") or []}
                line["scores"] = {k: v for k, v in scores.items() if isinstance(v, int | float | str | bool)}
                whole = Data(out.table)
                line["text"] = _text(whole, there[:1])
                if len(here):
                    alive.setdefault(step["as"], []).append(one)
            story.append(line)
    return story


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
