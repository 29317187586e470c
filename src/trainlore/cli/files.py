"""Files without a recipe: `do` runs one step on them, `label` asks a person about their rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainlore.cli.options import On


def do(
    method: Annotated[str, typer.Argument(help="The name of a step: see trainlore ls.")],
    rows: Annotated[str | None, typer.Argument(metavar="[DATA]", help="The same as --data.")] = None,
    data: Annotated[str | None, typer.Option(help="A file, folder, world:NAME/PART or hub:ID.")] = None,
    model: Annotated[str | None, typer.Option(help="A preset, a Hugging Face folder or id.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the result goes: .jsonl .csv .parquet, a folder for a model, .json for a report."),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", help="A field: keep=0.2, target=dev.jsonl (nouns by their source).")
    ] = None,
    seed: Annotated[int, typer.Option(help="What every random number of the step is drawn by.")] = 0,
    force: Annotated[bool, typer.Option(help="Replace OUT if it exists.")] = False,
    on: On = "local",
) -> None:
    """Run one step on files: trainlore do dsir --data pool.jsonl --set target=dev.jsonl --set keep=0.1 --out kept.jsonl"""
    from trainlore import single
    from trainlore.errors import Bad

    if rows is not None and data is not None:
        raise Bad(f"{rows} and --data {data}: give the data once")
    single.do(method, data or rows, model, out, sets or [], seed, force, on)


def label(
    data: Annotated[
        str,
        typer.Argument(
            help="The rows: a file, folder, world:NAME/PART or hub:ID, or a run whose active learning waits."
        ),
    ],
    out: Annotated[Path, typer.Option(help="The file of labels, JSONL, to begin or go on with.")],
    choices: Annotated[str, typer.Option(help="The classes, with commas: negative,positive or n=negative,p=positive.")],
    column: Annotated[str, typer.Option(help="What the label is called.")] = "label",
    by: Annotated[str | None, typer.Option(help="A column of scores: the highest is asked first.")] = None,
    show: Annotated[str, typer.Option(help="The columns to show, with commas (default: all that can be read).")] = "",
    ids: Annotated[
        str | None, typer.Option(help="A column that names the rows (default: their places in the file, from 0).")
    ] = None,
    labelled: Annotated[
        Path | None, typer.Option(help="Also write the labelled rows here at the end: .jsonl .csv .parquet.")
    ] = None,
) -> None:
    """Label rows by hand, one at a time; every answer is kept at once, and the same command goes on later."""
    from trainlore import labelling

    words = [c.strip() for c in choices.split(",") if c.strip()]
    labelling.label(data, out, column, words, [c.strip() for c in show.split(",") if c.strip()], by, ids, labelled)
