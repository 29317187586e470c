"""One step on files, and one model to a folder: what `trainlore do` and `trainlore export` run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.execute import build, describe
from trainlore.nouns import Data, Model, Report
from trainlore.recipe import TAKES
from trainlore.registry import entry, near
from trainlore.runs import Run

TABLES = (".jsonl", ".csv", ".parquet")


def do(
    method: str, data: str | None, model: str | None, out: Path | None, sets: list[str], seed: int, force: bool
) -> Any:
    """Run one step; write its result to `out` and the rows it dropped beside it. Gives the result."""
    import yaml

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
        if not mark or key not in e["fields"]:
            raise Bad(
                f"{method} has no field {key!r}" + (near(key, e["fields"]) or f"; it has {', '.join(e['fields'])}")
            )
        type_ = e["fields"][key]["type"]
        if "Data" in type_ or "Model" in type_:
            nouns[key] = Data.of(value) if "Data" in type_ else Model.of(value)
            fields[key] = f"${key}"
        else:
            fields[key] = yaml.safe_load(value)
    if missing := [k for k, f in e["fields"].items() if f["default"] is None and k not in fields]:
        raise Bad(f"{method} needs --set {missing[0]}=... ({e['fields'][missing[0]]['type']})")
    given = {"data": lambda: Data.of(data), "model": lambda: Model.of(model)}
    main = [given[wire]() for wire in TAKES[e["kind"]]]
    result = Run(seed).step(build(method, fields, nouns), *main)
    if out is not None:
        _write(result, main[0], out)
    from rich import print as say

    say(_told(result, main[0], out))
    return result


def _writable(out: Path | None, kind: str, force: bool) -> None:
    if out is None:
        return
    if kind == "Curate" and out.suffix not in TABLES:
        raise Bad(f"--out {out}: rows are written as {', '.join(TABLES)}")
    if out.exists() and not force:
        raise Bad(f"{out} exists: say --force to replace it")


def _write(result: Any, given: Any, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(result, Data):
        table(result, out)
        lost = np.setdiff1d(
            result.base_ids if result.base_ids is not None else np.arange(result.table.num_rows), result.ids
        )
        if len(lost) and result.table.num_rows == given.table.num_rows:
            import dataclasses

            table(dataclasses.replace(result, rows=lost), out.with_suffix(".dropped" + out.suffix))
    elif isinstance(result, Model):
        result.save(out)
    else:
        out.write_text(json.dumps(result.summary(), indent=1))


def table(data: Data, path: Path) -> None:
    """Write the rows in play as JSONL, CSV or Parquet, by the file's name."""
    rows = data.arrow()
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        pq.write_table(rows, path)
    elif path.suffix == ".csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(rows, path)
    else:
        with path.open("w") as file:
            for batch in rows.to_batches(max_chunksize=4096):
                for row in batch.to_pylist():
                    file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def _told(result: Any, given: Any, out: Path | None) -> str:
    to = f" → {out}" if out else ""
    if isinstance(result, Data):
        return f"{len(result):,} rows of {len(given):,}{to}"
    if isinstance(result, Report):
        return (
            "\n".join(f"{m.metric} {m.value:.5g} ± {m.stderr:.2g} (n = {len(m.values):,})" for m in result.measured)
            + to
        )
    return f"{describe(result)['model']['size'] / 1e6:.2f} M weights{to}"


def export(source: Path, to: Path, name: str | None, force: bool) -> float:
    """Write a model as a Hugging Face directory; give the relative distance of the logits after loading it back."""
    import torch

    from trainlore import trail
    from trainlore.steps import SAME, distance

    if to.exists() and not force:
        raise Bad(f"{to} exists: say --force to replace it")
    if (source / "run.json").exists():
        steps = trail.model(source, name.lstrip("$") if name else None)
        _, store = trail.opened(source)
        if not store.has(steps[-1]["key"]):
            raise Bad(
                f"${steps[-1]['as']} was not kept by the run (its form is more than its config says): add a `save` step to the recipe"
            )
        model = store.get(steps[-1]["key"])
    else:
        model = Model.of(str(source))
    model.save(to)
    back = Model.of(str(to))
    if model.probe is None or model.input not in model.probe:
        vocab = getattr(model.net.config, "vocab_size", 2)
        ids = torch.randint(vocab, (2, 16), generator=Run(0).rng("export"))
        batch: Any = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "row": torch.arange(2)}
    else:
        batch = model.probe
    with torch.no_grad():
        found = distance(model(batch), back(batch))
    if found > SAME:
        shutil.rmtree(to)
        raise Bad(f"what was written to {to} gives other outputs when loaded (relative distance {found:.2g}): removed")
    return found
