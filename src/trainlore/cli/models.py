"""A model for use elsewhere: `export` writes it for a runtime, `compress` makes it small first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from trainlore.cli.options import AsJson, OfRun
from trainlore.console import esc, say


def export(
    source: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder.")],
    to: Annotated[Path, typer.Option(help="The folder to write.")],
    form: Annotated[
        str, typer.Option("--format", help="hf, compressed-tensors (packed weights), gguf, onnx or masked (no zeros).")
    ] = "hf",
    data: Annotated[
        str | None, typer.Option(help="Rows to judge by: a path, world:NAME/PART or hub:OWNER/NAME.")
    ] = None,
    model: OfRun = None,
    force: Annotated[bool, typer.Option(help="Replace the folder if it exists.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a model for a runtime, and check that what that runtime makes of it gives the same outputs."""
    from trainlore import single
    from trainlore.exports.telling import told

    record = single.export(source, to, model, force, form, data)
    if as_json:
        print(json.dumps(record, indent=1))
        return
    say(esc(to))
    for line in told(record):
        say(f"[dim]{esc(line)}[/dim]")


def compress(
    source: Annotated[Path, typer.Argument(help="A run folder or a Hugging Face folder.")],
    data: Annotated[
        str, typer.Option(help="Rows of the kind the model reads: a path, world:NAME/PART or hub:OWNER/NAME.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    to: Annotated[str, typer.Option(help="Bits a weight at most, on average: 4bit.")] = "4bit",
    goal: Annotated[str, typer.Option(help='What it may cost: "loss +1 %" or "loss +0.02".')] = "loss +1 %",
    rows: Annotated[int, typer.Option(help="Calibration rows.")] = 64,
    model: OfRun = None,
    force: Annotated[bool, typer.Option(help="Replace what an earlier search wrote.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say only what came of it.")] = False,
) -> None:
    """Search methods and bits a layer for the smallest model within a goal; a quarter of the rows judges."""
    from trainlore import compressing, single
    from trainlore.nouns import Data

    found = single.model_in(source, model)
    record = compressing.compress(
        found, Data.of(data), to, goal, out, rows, force, tell=(lambda text: None) if quiet else say
    )
    best = next(p for p in record["points"] if p["name"] == record["chosen"])
    say(
        f"[bold]{best['name']}[/bold]: {best['bytes'] / 1e6:,.2f} MB instead of {record['bytes_before'] / 1e6:,.2f}, "
        f"loss {best['change']:+.4f} ± {best['stderr']:.4f}; the front is in {esc(out / 'report.html')}"
    )
    say(f"[dim]pack it: trainlore export {esc(out / 'model')} --to PLACE --format compressed-tensors[/dim]")
