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

SHOWN = 3  # of the rows one row was made into, or of


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


# ---- a row


def row(folder: Path, id: int, start: str | None = None) -> list[dict[str, Any]]:
    """What happened to the row with this id of the noun `start` (by default the first data of the recipe).

    One object a step: step, method, noun, row, what (kept, dropped, made into n rows, made of other rows, trained on, ...),
    scores (new columns), cuts (of those scores), text (the row as it left), copied (the text of the row that it copies). For a
    noun that steps made, where the row came from stands first.
    """
    record, store = opened(folder)
    steps = curations(folder)
    read = next((s["wires"]["data"] for s in record["steps"] if "data" in s["wires"]), None)
    lost = any(s["kind"] == "Curate" for s in record["steps"])
    if not steps and (lost or read is None):
        raise Bad(
            f"{folder} has no finished step that changed data"
            + ("; the store beside it no longer holds them: run the recipe again" if lost else "")
        )
    start = start or (steps[0]["from"] if steps else str(read))
    sources = _given(folder)
    _known(record, steps, sources, start)
    first = next((s["number"] for s in steps if s["from"] == start), math.inf)
    makers = [s for s in steps if s["number"] < first and s["as"] == start]
    ids = _ids(steps, sources, start, makers)
    if id not in ids:
        holes = " with gaps" if len(ids) and ids.max() - ids.min() >= len(ids) else ""
        said = f": its {len(ids):,} rows are {ids.min()} to {ids.max()}{holes}" if len(ids) else ": it has no rows"
        raise Bad(f"${start} has no row {id}{said}")
    story = _before(steps, makers[-1]["number"], start, id) if makers else []
    out = {s["number"]: s for s in steps}
    texts: dict[tuple[str, int], str] = {}
    alive: dict[str, list[int]] = {start: [id]}
    for step in record["steps"]:
        if makers and step["number"] <= makers[-1]["number"]:
            continue
        here = out.get(step["number"])
        left: list[int] = []
        if here is not None:
            for one in alive.get(here["from"], [])[:SHOWN]:
                lines, live = _through(here, one)
                for line in lines:
                    if line["what"] == "kept" and texts.get((here["from"], one), line["text"]) != line["text"]:
                        line["what"] = "rewritten"
                    texts[here["as"], one] = line["text"]
                story += lines
                left += live
        story += _read(step, alive) + _asked(step, store, alive)
        alive.pop(step["as"], None)  # a name may be given anew
        if left:
            alive[step["as"]] = left
    return story


def said(line: dict[str, Any]) -> str:
    """The scores of a line of a row's story as people read them, those that say nothing left out."""
    words = []
    for name, value in line["scores"].items():
        if value == "" or (isinstance(value, float) and not math.isfinite(value)) or (value == -1 and _is_int(value)):
            continue
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        cut = f" (cut at {line['cuts'][name]:.4g})" if name in line.get("cuts", {}) else ""
        words.append(f"{name} {'row ' if _is_copy(name) and _is_int(value) else ''}{shown}{cut}")
    return ", ".join(words)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_copy(column: str) -> bool:
    """Whether a column holds ids of rows that are copied."""
    return column.endswith("_of") or column == "alike"


def _through(step: dict[str, Any], one: int) -> tuple[list[dict[str, Any]], list[int]]:
    """What a step on data did to a row: the lines of its story, and the ids under which it lives on."""
    out: Data = step["out"]
    whole = out.whole()
    line: dict[str, Any] = {"step": step["number"], "method": step["name"], "noun": step["as"], "row": one}
    if step.get("made"):
        made = children(whole, one)
        live = made[np.isin(made, out.ids)]
        gone = made[~np.isin(made, out.ids)]
        told = np.flatnonzero(np.isin(whole.ids, (live if len(live) else gone)[:1]))
        line["what"] = f"made into {len(live)} row{'s' if len(live) != 1 else ''}" if len(live) else "dropped"
        if len(live) and len(gone):
            line["what"] += f", {len(gone)} more dropped"
        if len(live) > SHOWN:
            line["what"] += f", of which the first {SHOWN} are followed"
        line |= _scored(step, whole, told if not len(live) else told[:0])
        return [{**line, "text": _text(whole, told)}], live.tolist()
    there = np.flatnonzero(whole.ids == one)[:1]
    if not len(there):
        return [], []
    kept = bool((out.ids == one).any())
    line |= {"what": "kept" if kept else "dropped", **_scored(step, whole, there), "text": _text(whole, there)}
    for name, value in line["scores"].items():
        if _is_copy(name) and _is_int(value) and value >= 0 and (text := _text(whole, whole.ids == value)):
            line["copied"] = text
    return [line], [one] if kept else []


def _scored(step: dict[str, Any], whole: Data, at: np.ndarray) -> dict[str, Any]:
    """What the step's new columns say of a row, and where their cuts are."""
    found = {c: whole.table[c][int(at[0])].as_py() for c in step.get("columns") or [] if len(at) and c in whole.columns}
    scores = {
        k: v for k, v in found.items() if isinstance(v, int | float | str | bool) and k not in ("parents", "text")
    }
    looked = (step.get("look") or {}).get("scores") or []
    return {"scores": scores, "cuts": {s["name"]: s["cut"]["at"] for s in looked if s["cut"] and s["name"] in scores}}


def _read(step: dict[str, Any], alive: dict[str, list[int]]) -> list[dict[str, Any]]:
    """That a step which makes no data of the row read it all the same: trained on it, measured it, took it for a field."""
    from trainlore.recipe import refs

    word = {"Fit": "in the rows trained on", "Measure": "in the rows measured"}.get(step["kind"])
    places = [(step["wires"]["data"], word)] if word and "data" in step["wires"] else []
    places += [(name, f"read as {key}") for key, value in step["fields"].items() for name in sorted(refs(value))]
    for part in step.get("with", []):
        places += [(name, f"read by {key}") for key, value in part.items() for name in sorted(refs(value))]
    lines = []
    for name, what in places:
        if mine := alive.get(name):
            line = {"step": step["number"], "method": step["name"], "noun": step["as"], "row": mine[0]}
            more = f", and {len(mine) - 1} more made of it" if len(mine) > 1 else ""
            lines.append({**line, "what": what + more, "scores": {}})
    return lines


def _asked(step: dict[str, Any], store: Store, alive: dict[str, list[int]]) -> list[dict[str, Any]]:
    """That active learning asked for the label of a row, in which round, and what it was told."""
    mine = alive.get(str(step["fields"].get("pool", ""))[1:])
    if step["kind"] != "Fit" or not mine or not store.has(step["key"]):
        return []
    about = store.get(step["key"]).about
    said = dict.fromkeys(about.get("waiting", []), "asked about, and waiting for an answer")
    for told in about.get("asked", []):
        pairs = zip(told["rows"], told["labels"], strict=True)
        said |= {i: f"asked about in round {told['round']}: class {label}" for i, label in pairs}
    line = {"step": step["number"], "method": step["name"], "noun": step["as"]}
    return [{**line, "row": i, "what": said[i], "scores": {}} for i in mine[:SHOWN] if i in said]


def _before(steps: list[dict[str, Any]], last: int, noun: str, id: int) -> list[dict[str, Any]]:
    """Where a row of a noun came from: the steps up to number `last` that made it, the first one first."""
    story: list[list[dict[str, Any]]] = []
    ids = [id]
    for step in reversed([s for s in steps if s["number"] <= last]):
        if step["as"] != noun:
            continue
        lines = []
        for one in ids[:SHOWN]:
            if not step.get("made"):
                lines += _through(step, one)[0]
                continue
            mine, out = parents(step["out"], [one]), step["out"]
            some = ", ".join(map(str, mine[:SHOWN])) + (f" and {len(mine) - SHOWN} more" if len(mine) > SHOWN else "")
            what = f"made of row{'s' if len(mine) > 1 else ''} {some} of ${step['from']}" if mine else "made anew"
            at = np.flatnonzero(out.ids == one)[:1]
            line = {"step": step["number"], "method": step["name"], "noun": step["as"], "row": one, "what": what}
            lines.append({**line, "scores": {}, "cuts": {}, "text": _text(out, at)})
        story.append(lines)
        noun, ids = step["from"], parents(step["out"], ids) if step.get("made") else ids
        if not ids:
            break
    return [line for lines in reversed(story) for line in lines]


def children(out: Data, parent: int) -> np.ndarray:
    """Ids of the rows made from this one; `parents` holds one id or a list of them a row."""
    values, owner = _families(out)
    return out.ids[np.unique(owner[values == parent])]


def parents(out: Data, ids: list[int]) -> list[int]:
    """The ids of the rows that these were made of, each once, in their order; a row may be made of none."""
    values, owner = _families(out)
    return list(dict.fromkeys(values[np.isin(out.ids, ids)[owner]].tolist()))


def _families(out: Data) -> tuple[np.ndarray, np.ndarray]:
    """The parents of all rows in one array, and the place of the row that each is a parent of."""
    try:
        values, offsets = out.lists("parents")
    except ValueError:
        return np.asarray(out["parents"]), np.arange(len(out))
    return values, np.repeat(np.arange(len(out)), np.diff(offsets))


def _known(record: dict[str, Any], steps: list[dict[str, Any]], sources: dict[str, Any], start: str) -> None:
    """Raise Bad unless data of this name were read or made."""
    from trainlore.recipe import refs
    from trainlore.registry import near

    names = {s["from"] for s in steps} | {s["as"] for s in steps}
    for step in record["steps"]:
        names |= {step["wires"]["data"]} if "data" in step["wires"] else set()
        names |= refs(step["fields"]) & set(sources)
    if start not in names:
        there = ", ".join(sorted(f"${n}" for n in names))
        raise Bad(f"no data are called ${start}" + (near(start, names) or f"; there are {there}"))


def _given(folder: Path) -> dict[str, Any]:
    """The sources of the data that the run was given, and its seed, by name; none where the recipe is gone."""
    import msgspec
    import yaml

    from trainlore.recipe import Spec
    from trainlore.sources import noun_of

    def is_data(source: Any) -> bool:
        try:
            return noun_of(source) == "Data"
        except Bad:  # a file that is gone
            return False

    try:
        spec = msgspec.convert(yaml.safe_load((folder / "recipe.yaml").read_text()), Spec)
    except (OSError, yaml.YAMLError, msgspec.ValidationError):
        return {}
    return {name: (source, spec.seed) for name, source in spec.given.items() if is_data(source)}


def _ids(steps: list[dict[str, Any]], sources: dict[str, Any], start: str, makers: list[dict[str, Any]]) -> np.ndarray:
    """The ids of the rows that the noun had when it was first read."""
    from trainlore.given import given

    if makers:
        return makers[-1]["out"].ids
    reader = next((s for s in steps if s["from"] == start), None)
    if reader is not None and not reader.get("made"):
        return reader["out"].whole().ids
    try:
        source, seed = sources[start]
        return given(start, source, seed).get().ids
    except (Bad, OSError, KeyError):  # the source is no longer there: what the step says of it has to do
        if reader is None:
            raise Bad(f"the rows of ${start} are no longer where they were read from") from None
        return np.union1d(np.arange(reader["rows_in"]), _families(reader["out"].whole())[0])


def _text(data: Data, at: np.ndarray) -> str:
    """What the first of these rows says, where there is text."""
    from trainlore.looking.columns import TEXTS, texts

    at = np.flatnonzero(at)[:1] if at.dtype == bool else at[:1]
    if not len(at) or not any(all(n in data.columns for n in names) for names in TEXTS):
        return ""
    return texts(data, at)[0][:240]


# ---- a model


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
