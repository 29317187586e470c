"""What a model would see: the data steps of a recipe run alone, with tokens, masks and choices laid open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from trainlore.cli import esc, say
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.nouns import Data, Model
from trainlore.recipe import Recipe

PREPARED = "prepared: "  # how the name of such a run begins


def prepare(recipe: Recipe, out: Path, debug: bool, rows: int) -> dict[str, Any]:
    """Run every step before the first training; print what each kept and, with `debug`, the rows and tokens themselves."""
    import msgspec

    at = next((i for i, s in enumerate(recipe.steps) if s.name == "train"), None)
    if at is None:
        raise Bad("the recipe has no train step to prepare data for")
    needed, keep = {recipe.steps[at].wires["data"], recipe.steps[at].wires["model"]}, []
    for step in reversed(recipe.steps[:at]):
        if step.gives in needed:
            needed |= set(step.wires.values()) | _refs(step)
            keep.append(msgspec.structs.replace(step, last=frozenset()))
    if (out / "run.json").exists() and not json.loads((out / "run.json").read_text())["name"].startswith(PREPARED):
        raise Bad(f"{out} is a run, and preparing would replace it: choose another --out")
    spec = msgspec.structs.replace(recipe.spec, name=PREPARED + recipe.spec.name)
    short = msgspec.structs.replace(recipe, spec=spec, steps=keep[::-1])
    nouns = execute(short, out, force=True, tell=say) if keep else execute(short, None, tell=say)
    for step in short.steps:
        if isinstance(nouns[step.gives], Data):
            _chosen(step, nouns, rows if debug else 0)
    train = recipe.steps[at]
    model, data = nouns[train.wires["model"]], nouns[train.wires["data"]]
    if debug:
        _tokens(model, data, rows)
    return nouns


def _refs(step: Any) -> set[str]:
    from trainlore.recipe import refs

    return refs(step.fields)


def _chosen(step: Any, nouns: dict[str, Any], rows: int) -> None:
    """Kept against dropped rows of a step that narrows, with the scores it wrote."""
    given, out = nouns.get(step.wires.get("data", "")), nouns[step.gives]
    if not isinstance(given, Data):
        return
    say(f"\n[bold]{step.name}[/bold]: {len(given):,} rows → {len(out):,}")
    new = [
        c
        for c in out.columns
        if c not in given.columns and c not in ("input_ids", "labels", "segment_ids", "position_ids", "parents")
    ]
    if not rows or "text" not in out.columns or out.table.num_rows != given.table.num_rows:
        return
    lost = out.dropped()
    lost = lost.where(np.isin(lost.ids, given.ids))
    for label, some in (("[green]kept   [/green]", out), ("[red]dropped[/red]", lost)):
        some = some.take(range(min(rows, len(some))))
        shown = some.arrow().select(new).to_pylist() if new else [{}] * len(some)
        for id, text, found in zip(some.ids.tolist(), some.text(), shown, strict=True):
            scores = " ".join(f"{c} {v:.4g}" if isinstance(v, float) else f"{c} {v}" for c, v in found.items())
            say(f"  {label} {id:>7}  {esc(scores)}  [dim]{esc(repr(text[:90]))}[/dim]")


def _tokens(model: Model, data: Data, rows: int) -> None:
    """Tokens as the model sees them: grey where nothing is learned, a bar where a packed document begins."""
    from rich.console import Console
    from rich.text import Text

    from trainlore.loop import prepared

    data = prepared(model, data, True)
    batch, console = data.batch(np.arange(min(rows, len(data))), model), Console()
    prefix = "" if "input_ids" in batch else "chosen_"
    if prefix + "input_ids" not in batch:
        console.print(f"\n[bold]a batch[/bold] ({len(data):,} rows): no tokens, but")
        for name, value in batch.items():
            console.print(f"  {esc(name)}  {tuple(value.shape)}  {str(value.dtype).removeprefix('torch.')}")
        return
    console.print(f"\n[bold]tokens[/bold] ({len(data):,} rows; grey: not trained on; │: a packed document begins)")
    for i in range(len(batch["row"])):
        line = Text(f"row {i}: ", style="bold")
        ids, wanted = batch[prefix + "input_ids"][i].tolist(), batch.get(prefix + "labels")
        along = wanted is not None and wanted.shape == batch[prefix + "input_ids"].shape and model.kind != "seq2seq"
        labels = wanted[i].tolist() if along else [-100] * len(ids)
        mask = batch.get(prefix + "attention_mask")
        segments = batch["segment_ids"][i].tolist() if "segment_ids" in batch else None
        for at, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if mask is not None and not mask[i, at]:
                continue
            if segments and at and segments[at] >= 0 and segments[at] != segments[at - 1]:
                line.append("│", style="bold red")
            piece = model.tokenizer.decode([token]) if model.tokenizer is not None else str(token)
            line.append(piece, style="dim" if label == -100 else ("on grey19" if at % 2 else "on grey27"))
        if wanted is not None and not along:  # a class, or an answer of its own
            said = [t for t in wanted[i].reshape(-1).tolist() if t != -100]
            text = model.tokenizer.decode(said) if wanted.dim() > 1 and model.tokenizer is not None else str(said)
            line.append(" → ", style="bold red").append(text, style="on grey27")
        console.print(line, soft_wrap=not console.is_terminal)
