"""What the record and the report say: of nouns, of what a step kept and dropped, of how far such steps agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainlore import looking
from trainlore.given import Noun
from trainlore.nouns import Data, Model, Report
from trainlore.runs import Run

Choice = tuple[dict[str, Any], Noun, Noun]  # a step that narrowed its data: its record, what it read and what it gave


def describe(noun: Any) -> dict[str, Any]:
    """What the run's record says of a noun: composition of data, curve of a model, summary of a report."""
    if isinstance(noun, Data):
        last = noun.trail[-1] if noun.trail else {}
        return {
            "noun": "Data",
            "data": composition(noun),
            **{k: last[k] for k in ("rows_in", "rows_out", "columns", "made") if k in last},
        }
    if isinstance(noun, Model):
        curve = noun.about.get("curve")
        thin = max(1, len(curve["t"]) // 400) if curve else 1
        shown = {k: v[::thin] for k, v in curve.items()} if curve else None
        return {
            "noun": "Model",
            "model": {"class": type(noun.net).__name__, "size": noun.size, "kind": noun.kind},
            "curve": shown,
        }
    return {"noun": "Report", "report": noun.summary()}


def composition(data: Data) -> dict[str, Any]:
    """Rows and characters of each domain, and how long the rows are (characters of text, or tokens)."""
    import pyarrow.compute as pc

    found: dict[str, Any] = {"rows": len(data), "columns": data.columns}
    if not len(data):
        return found
    lengths = None
    if "text" in data.columns:
        lengths = pc.utf8_length(data["text"]).to_numpy(zero_copy_only=False).astype(float)
        found["unit"] = "characters"
    elif "input_ids" in data.columns:
        lengths = np.diff(data.lists("input_ids")[1]).astype(float)
        found["unit"] = "tokens"
    if lengths is not None:
        top = max(1.0, float(np.quantile(lengths, 0.99)))
        counts, edges = np.histogram(np.minimum(lengths, top), bins=30, range=(0, top))
        found |= {"total": float(lengths.sum()), "lengths": {"counts": counts.tolist(), "edges": edges.tolist()}}
        found["median"] = float(np.median(lengths))
    if "domain" in data.columns:
        names, where = np.unique(np.asarray(data["domain"]).astype(str), return_inverse=True)
        weight = lengths if lengths is not None else np.ones(len(data))
        sizes = np.bincount(where, weights=weight)
        rows = np.bincount(where)
        found["domains"] = {
            str(n): {"rows": int(r), "size": float(s)} for n, r, s in zip(names, rows, sizes, strict=True)
        }
    return found


def looked(given: Callable[[], Any], out: Callable[[], Any]) -> dict[str, Any]:
    """What a step on data kept and dropped, for the report; what cannot be looked at stops no run."""
    try:
        found = looking.look(given(), out())
    except Exception as error:
        return {"look": {"error": f"{type(error).__name__}: {error}"}}
    return {"look": found, "columns": found["columns"]} if found else {"look": {}}


def agreement(chosen: list[Choice]) -> list[dict[str, Any]]:
    """How far the steps agree that chose from one pool."""
    pools: dict[str, list[Choice]] = {}
    for one in chosen:
        pools.setdefault(one[1].key, []).append(one)
    found = []
    for (first, pool, _), *rest in pools.values():
        if rest:
            mine = [(f"{s['number']} {s['name']}", out.get(), s["look"]) for s, p, out in chosen if p.key == pool.key]
            with contextlib.suppress(Exception):  # a table less in the report, not a run less
                found.append({"pool": first["wires"]["data"], "pairs": looking.agreement(pool.get(), mine)})
    return found


def outcomes(report: Report, path: Path) -> None:
    """Per-row outcomes of every metric, as one tidy Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    tables = []
    for m in report.measured:
        n = len(m.values)
        rows = m.rows if m.rows is not None and len(m.rows) == n else np.arange(n)
        columns = {"metric": [m.metric] * n, "row": np.asarray(rows, np.int64), "value": m.values}
        tables.append(pa.table(columns | {str(g): list(map(str, v)) for g, v in m.groups.items() if len(v) == n}))
    pq.write_table(pa.concat_tables(tables, promote_options="default"), path)


def model_card(model: Model, run: Run) -> str:
    """The README.md of a saved model: what made it, step by step, and the recipe itself."""
    recipe = (
        (run.folder / "recipe.yaml").read_text()
        if run.folder is not None and (run.folder / "recipe.yaml").exists()
        else ""
    )
    steps = "\n".join(
        f"| {e['method']} | {e.get('step', '')} | {e.get('work', 0):.3g} | {e.get('seconds', 0):.1f} |"
        for e in model.trail
    )
    return (
        "---\nlibrary_name: transformers\ntags: [trainlore]\n---\n\n# A model made by a Trainlore recipe\n\n"
        f"| method | step | work (FLOPs) | seconds |\n|---|---|---|---|\n{steps}\n\n## Recipe\n\n```yaml\n{recipe}```\n"
    )
