"""One step on files, and one model to a folder: what `trainlore do` and `trainlore export` run."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from trainlore import cluster, store, trail
from trainlore.building import build
from trainlore.console import esc, say
from trainlore.errors import Bad
from trainlore.looking.columns import sides
from trainlore.nouns import Data, Model, Report
from trainlore.recipe import TAKES, _fields
from trainlore.registry import entry, near
from trainlore.runs import Run
from trainlore.sources import noun_of

TABLES = (".jsonl", ".csv", ".parquet")


def do(
    method: str,
    data: str | None,
    model: str | None,
    out: Path | None,
    sets: list[str],
    seed: int,
    force: bool,
    on: str = "local",
) -> Any:
    """Run one step; write its result to `out` and the rows it dropped beside it. Gives the result."""
    import yaml

    cluster.check(on)
    e = entry(method)
    if e["kind"] == "Part":
        raise Bad(f"{method} is a part of a training loop: use it in a recipe, under `with` of a train step")
    sources = {"data": data, "model": model}
    for wire in TAKES[e["kind"]]:
        if sources[wire] is None:
            raise Bad(f"{method} needs --{wire}")
    _writable(out, e["kind"], force)
    nouns: dict[str, Any] = {}
    fields: dict[str, Any] = {}
    for item in sets:
        key, mark, value = item.partition("=")
        if key not in e["fields"]:
            raise Bad(
                f"{method} has no field {key!r}" + (near(key, e["fields"]) or f"; it has {', '.join(e['fields'])}")
            )
        if not mark:
            raise Bad(f"--set {item}: say --set {key}=VALUE")
        type_ = e["fields"][key]["type"]
        try:
            read = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Bad(f"--set {item}: not YAML: {' '.join(str(error).split())}") from None
        plain = re.search(r"\bstr\b", type_) and not _is_source(read)  # a field that takes a word or a noun
        if re.search(r"\b(Data|Model)\b", type_) and read is not None and not plain:
            many = read if isinstance(read, list) else [value]
            names: list[str] = []
            for one in many:
                names.append(f"{key}_{len(names)}")
                nouns[names[-1]] = (Data if re.search(r"\bData\b", type_) else Model).of(one)
            lists = re.search(r"\b(tuple|list)\b", type_)
            fields[key] = [f"${n}" for n in names] if lists else f"${names[0]}"
        else:
            fields[key] = read
    if missing := [k for k, f in e["fields"].items() if f["default"] is None and k not in fields]:
        raise Bad(f"{method} needs --set {missing[0]}=... ({e['fields'][missing[0]]['type']})")
    if wrong := _fields(method, fields, {k: type(v).__name__ for k, v in nouns.items()}):
        raise Bad(f"{method}: " + "; ".join(wrong))
    given = {"data": lambda: Data.of(data), "model": lambda: Model.of(model)}
    main = [given[wire]() for wire in TAKES[e["kind"]]]
    result = Run(seed, on=on).step(build(method, fields, nouns), *main)
    if out is not None:
        _write(result, main[0], out)
    say(_told(result, main[0], out))
    return result


def _is_source(value: Any) -> bool:
    try:
        return str(value).startswith("hub:") or bool(noun_of(value))
    except Bad:
        return False


def _writable(out: Path | None, kind: str, force: bool) -> None:
    if out is None:
        return
    if kind == "Curate" and out.suffix not in TABLES:
        raise Bad(f"--out {out}: rows are written as {', '.join(TABLES)}")
    if kind == "Measure" and out.suffix != ".json":
        raise Bad(f"--out {out}: a report is written as .json")
    if out.is_dir() and kind in ("Curate", "Measure"):
        raise Bad(f"--out {out} is a folder: name a file")
    places = (out, _dropped(out)) if kind == "Curate" else (out,)
    if there := [p for p in places if p.exists() and not force]:
        raise Bad(f"{there[0]} exists: say --force to replace it")


def _dropped(out: Path) -> Path:
    """Where the rows go that a step dropped."""
    return out.with_suffix(".dropped" + out.suffix)


def _write(result: Any, given: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(result, Data):
        table(result, out)
        _dropped(out).unlink(missing_ok=True)  # of an earlier run
        seen = sides(given, result)  # none where the step made rows: then those that it made and did not keep
        lost = result.dropped() if seen is None else seen[0].where(~seen[1])
        if len(lost):
            table(lost, _dropped(out))
    elif isinstance(result, Model):
        result.save(out)
    else:
        store.write(out, trail.as_json(result.summary()) + "\n")


def table(data: Data, path: Path) -> None:
    """Write the rows in play as JSONL, CSV or Parquet, by the file's name; the file is there whole or not at all."""
    rows, part = data.arrow(), path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            pq.write_table(rows, part)
        elif path.suffix == ".csv":
            _csv(rows, part)
        else:
            with part.open("w", encoding="utf-8") as file:
                for batch in rows.to_batches(max_chunksize=4096):
                    for row in batch.to_pylist():
                        file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
        os.replace(part, path)
    except OSError as error:
        raise store.full(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def _csv(rows: Any, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.csv

    if nested := [f.name for f in rows.schema if pa.types.is_nested(f.type)]:
        raise Bad(f"column {nested[0]!r} holds lists, for which CSV has no form: write .jsonl or .parquet")
    pyarrow.csv.write_csv(rows, path)


def _told(result: Any, given: Any, out: Path | None) -> str:
    to = f" → {esc(out)}" if out else ""
    if isinstance(result, Data):
        return f"{len(result):,} rows of {len(given):,}{to}"
    if isinstance(result, Report):
        return (
            "\n".join(f"{m.metric} {m.value:.5g} ± {m.stderr:.2g} (n = {len(m.values):,})" for m in result.measured)
            + to
        )
    return f"{result.size / 1e6:.2f} M weights{to}"


def export(
    source: Path, to: Path, name: str | None, force: bool, form: str = "hf", data: str | None = None
) -> dict[str, Any]:
    """Write a model for a runtime and hold what that makes of it against what it was: the record of the gate.

    `data` names rows to judge by; without, rows are found (see `exports.rows`)."""
    from trainlore import exports

    exports.module(form)  # a format that is not there is said before a model is loaded
    if to.exists() and not force:
        raise Bad(f"{to} exists: say --force to replace it")
    return exports.write(model_in(source, name), to, form, force, Data.of(data) if data else None)


def model_in(source: Path, name: str | None = None) -> Model:
    """The model of a run (the last one, or the one of this name) or of a Hugging Face folder."""
    if not source.is_dir():
        raise Bad(f"no folder {source}: give a run folder or a Hugging Face folder")
    if not (source / "run.json").exists():
        return Model.of(str(source))
    last = trail.model(source, name.lstrip("$") if name else None)[-1]
    _, kept = trail.opened(source)
    if last["name"] == "save" and (source / str(last["fields"].get("to", "model"))).is_dir():
        return Model.of(str(source / str(last["fields"].get("to", "model"))))
    if kept.has(last["key"]):
        return kept.get(last["key"])
    raise Bad(
        f"${last['as']} was not kept by the run (its form is more than its config says): add a `save` step to the recipe"
    )
