"""What a model would see: the data steps of a recipe run alone, with tokens, masks and choices laid open."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from trainlore.console import esc, say
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.nouns import Data, Model
from trainlore.recipe import Recipe, Step, refs

PREPARED = "prepared: "  # how the name of such a run begins


def prepare(recipe: Recipe, out: Path, debug: bool, rows: int) -> dict[str, Any]:
    """Run what the first training needs, or every step on data where there is no training; tell what each step kept.

    With `debug` also every choice of rows that needs no training, with scores, rows of each side and the tokens themselves."""
    import msgspec

    at = next((i for i, s in enumerate(recipe.steps) if s.name == "train"), len(recipe.steps))
    keep = [msgspec.structs.replace(s, last=frozenset()) for s in _wanted(recipe, at, debug)]
    if (out / "run.json").exists() and not json.loads((out / "run.json").read_text())["name"].startswith(PREPARED):
        raise Bad(f"{out} is a run, and preparing would replace it: choose another --out")
    spec = msgspec.structs.replace(recipe.spec, name=PREPARED + recipe.spec.name)
    if not keep and at == len(recipe.steps):
        raise Bad("the recipe has no training to prepare data for, and no step on data that needs none")
    short = msgspec.structs.replace(recipe, spec=spec, steps=keep)
    begun = time.time()
    try:
        nouns = execute(short, out, force=True, tell=say) if keep else execute(short, None, tell=say)
    finally:  # where a step fails, what those before it kept is what its fields have to be mended by
        record = json.loads((out / "run.json").read_text()) if keep and (out / "run.json").exists() else {}
        if record.get("started", 0) >= begun:  # else it is of an earlier time
            for step in record["steps"]:
                if step["noun"] == "Data":
                    _chosen(step, rows if debug else 0)
            if debug:
                _agreement(record.get("agreement", []))
    if debug and at < len(recipe.steps):
        train = recipe.steps[at]
        _tokens(nouns[train.wires["model"]], nouns[train.wires["data"]], rows)
    if keep:
        say(f"\npictures and maps: [bold]{esc(out / 'report.html')}[/bold]")
    return nouns


def _wanted(recipe: Recipe, at: int, all_: bool) -> list[Step]:
    """The steps that the training at `at` needs and, if all are wanted, every choice of rows that needs no training."""
    all_ = all_ or at == len(recipe.steps)
    free, known = set(), set(recipe.spec.given)
    ready, steps = set(known), recipe.steps
    for i, step in enumerate(steps):
        if all_ and step.kind in ("Curate", "Shape") and _asks(step) <= ready and (i < at or step.gives not in known):
            free.add(i)
            ready.add(step.gives)
        else:
            ready.discard(step.gives)
        known.add(step.gives)
    needed, keep = set(steps[at].wires.values()) if at < len(steps) else set(), []
    for i in reversed(range(len(steps))):
        asked = steps[i].gives in needed and (i < at or i in free)
        if asked or (i in free and steps[i].kind == "Curate"):
            needed |= _asks(steps[i])
            keep.append(steps[i])
    return keep[::-1]


def _asks(step: Step) -> set[str]:
    return refs(step.fields) | refs([f for _, f in step.parts]) | set(step.wires.values())


def _chosen(step: dict[str, Any], rows: int) -> None:
    """What a step on data kept and dropped: scores and the cut, reasons, domains, copies, and rows of each side."""
    say(f"\n[bold]{step['name']}[/bold]: {step['rows_in']:,} rows → {step['data']['rows']:,}")
    look = step.get("look") or {}
    if not rows or "rows" not in look:
        return
    for score in look["scores"]:
        at, edges = score["cut"], score["edges"]
        where = f", cut at {at['at']:.4g}" if at else ", no single cut"
        say(f"  {esc(score['name'])} from {edges[0]:.4g} to {edges[-1]:.4g}{where}")
        place = int(np.searchsorted(edges, at["at"])) if at else -1
        for side, colour in (("kept", "green"), ("dropped", "red")):
            say(f"    [{colour}]{side:7}[/{colour}] {_bars(score[side], place)}")
    if look["reasons"]:
        said = ", ".join(f"{word or '(none)'} {lost:,}" for word, lost, _ in look["reasons"]["counts"])
        say(f"  dropped by {esc(look['reasons']['column'])}: {esc(said)}")
    if look["domains"]:
        all_ = look["domains"]["rows"]
        before, after = (sum(r[k] for r in all_) or 1 for k in ("before", "after"))
        said = ", ".join(f"{r['name']} {r['before'] / before:.0%} → {r['after'] / after:.0%}" for r in all_)
        say(f"  {esc(look['domains']['column'])}: {esc(said)}")
    for pair in look["copies"].get("pairs", [])[:rows]:
        say(f"  [red]copy   [/red] {pair['row']:>7}  of {pair['of']}  [dim]{esc(repr(pair['text'][:90]))}[/dim]")
        say(f"  [dim]  {'like':>14}  {esc(repr(pair['text_of'][:90]))}[/dim]")
    for side, colour in (("kept", "green"), ("dropped", "red")):
        for row in look["examples"][side][:rows]:
            scores = " ".join(f"{c} {v:.4g}" if isinstance(v, float) else f"{c} {v}" for c, v in row["scores"].items())
            head = f"[{colour}]{side:7}[/{colour}] {row['row']:>7}"
            say(f"  {head}  {esc(scores)}  [dim]{esc(repr(row['text'][:90]))}[/dim]")


def _bars(counts: list[int], cut: int) -> str:
    """Counts as a row of bars of letters, a line where the cut is."""
    most = max(counts) or 1
    bars = [" ▁▂▃▄▅▆▇█"[-(-8 * c // most)] for c in counts]
    return "".join([*bars[:cut], "│", *bars[cut:]] if cut >= 0 else bars)


def _agreement(pools: list[dict[str, Any]]) -> None:
    for one in pools:
        if not one["pairs"]:
            continue
        say(f"\n[bold]agreement[/bold] of those that chose from ${esc(one['pool'])}")
        for p in one["pairs"]:
            rank = "" if p["rank"] is None else f", rank correlation {p['rank']:.2f}"
            say(
                f"  {p['one']} and {p['other']}: {p['both']:,} rows in both, overlap {p['overlap']:.0%} (by chance {p['chance']:.0%}){rank}"
            )


def _tokens(model: Model, data: Data, rows: int) -> None:
    """Tokens as the model sees them: grey where nothing is learned, a bar where a packed document begins."""
    from rich.console import Console
    from rich.text import Text

    from trainlore.readiness import prepared

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
