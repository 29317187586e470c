"""What happened: `trail` tells it of a row or of a model, `report` writes the page of a run or a race anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainlore.cli.options import AsJson
from trainlore.cli.runs import brief
from trainlore.console import esc, say
from trainlore.errors import Bad


def trail(
    folder: Annotated[Path, typer.Argument(help="A run folder.")],
    row: Annotated[
        int | None, typer.Option(help="The id of a row: of a file, its place in it, counted from 0.")
    ] = None,
    of: Annotated[
        str | None,
        typer.Option(help="The data whose row it is, by name (default: the first that a step read)."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The name of a model of the run; '' for the last one.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell the story of a row (--row 123) or of a model (--model NAME) through a run."""
    from trainlore import trail as trails

    if (row is None) == (model is None):
        raise Bad("say --row ID or --model NAME")
    if row is not None:
        lines = trails.row(folder, row, of.lstrip("$") if of else None)
    else:
        lines = trails.model(folder, model.lstrip("$") if model else None)
    if as_json:
        print(trails.as_json(lines))
        return
    width = max(len(line["method"]) + len(line["noun"]) for line in lines) + 4 if row is not None else 0
    told: set[str] = set()
    for line in lines:
        if row is not None:
            gave = f"{line['method']} → ${line['noun']}"
            head = f"{line['step']:2d} {gave:<{width}}  row {line['row']:<7}"
            say(f"{head} [bold]{esc(line['what'])}[/bold]  {esc(trails.said(line))}".rstrip())
            for word, text in (("", line.get("text")), ("a copy of ", line.get("copied"))):
                if text and (word or text not in told):  # a text is told once, and again where a step changes it
                    told.add(text)
                    say(f"     [dim]{word}{esc(repr(text[:110]))}[/dim]")
        else:
            data = f"  data ${line['wires']['data']}" if "data" in line["wires"] else ""
            head = f"{line['number']:2d} [bold]{line['name']}[/bold] → ${line['as']}{data}"
            say(f"{head}  {line['work']:.3g} FLOPs, {line['seconds']:.1f} s, {brief(line)}")


def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report of a run or a race anew and say where it is."""
    from trainlore import page
    from trainlore.races import page as race_page
    from trainlore.trail import opened

    if (folder / "race.json").exists():
        say(esc(race_page.write(folder)))
        return
    opened(folder)
    say(esc(page.write(folder)))
