"""Running a recipe and going on with it: `run`, `resume`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from trainlore import console
from trainlore.cli import races
from trainlore.cli.options import On, Quiet, Sets
from trainlore.cli.shipped import recipe_path
from trainlore.console import esc
from trainlore.errors import Bad, Busy


def run(
    recipe: Annotated[
        str | None, typer.Argument(help="A recipe file or the name of a starter (default: first_life).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder (default: runs/NAME-TIME).")] = None,
    sets: Sets = None,
    force: Annotated[bool, typer.Option(help="Replace the run folder if it exists.")] = False,
    strict: Annotated[bool, typer.Option(help="Fail when a part of a training did nothing.")] = False,
    on: On = "local",
    profile: Annotated[bool, typer.Option(help="Write a trace of a few steps of each training.")] = False,
    report_to: Annotated[str, typer.Option(help="Trackers to tell as well: tensorboard, mlflow, wandb.")] = "",
    quiet: Quiet = False,
) -> None:
    """Run a recipe: a model's whole life, step by step, with a report at the end.

    Without a recipe this runs [bold]first_life[/bold]: about five minutes on two cores, no network.
    On several devices: [bold]torchrun --nproc-per-node N -m trainlore run RECIPE --out FOLDER[/bold].
    """
    from trainlore import recipe as recipes
    from trainlore.folders import slug
    from trainlore.reporting import named

    made = recipes.read(recipe_path(recipe), sets)
    folder = out or Path("runs") / f"{slug(made.spec.name)}-{time.strftime('%Y%m%d-%H%M%S')}"
    if out is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise Bad("several processes need one folder: say --out FOLDER")
    _run(made, folder, quiet, force=force, strict=strict, on=on, profile=profile, report_to=named(report_to))


def resume(
    folder: Annotated[Path, typer.Argument(help="The folder of an interrupted run.")],
    strict: Annotated[bool, typer.Option(help="Fail when a part of a training did nothing.")] = False,
    on: On = "local",
    quiet: Quiet = False,
) -> None:
    """Go on with an interrupted run: finished steps are kept, a training goes on from its last checkpoint."""
    from trainlore import recipe as recipes

    if (folder / "race.json").exists():
        races.run(folder, None, None, True, quiet)
        return
    if not (folder / "run.json").exists() and not (folder / "recipe.yaml").exists():
        raise Bad(f"{folder} is not a run: it has no run.json")
    _run(recipes.read(folder / "recipe.yaml"), folder, quiet, resume=True, strict=strict, on=on)


def _run(made: Any, folder: Path, quiet: bool, **how: Any) -> None:
    from transformers.utils import logging

    from trainlore.execute import execute
    from trainlore.memory import keep_freed
    from trainlore.progress import bars
    from trainlore.runs import Interrupted

    keep_freed()
    logging.disable_progress_bar()  # one set of bars is enough
    leads = os.environ.get("RANK", "0") == "0"
    there = (folder / "run.json").exists() and not how.get("resume")  # an earlier run: then its state is not news
    with bars(not quiet and leads and sys.stderr.isatty()) as shown:
        tell: Callable[[str], None] = console.teller(shown) if leads else lambda text: None
        try:
            execute(made, folder, bars=shown, tell=tell, **how)
        except (Interrupted, KeyboardInterrupt):
            on = (folder / "run.json").exists() and not there
            tell("[yellow]stopped[/yellow]" + (f"; go on with: trainlore resume {esc(folder)}" if on else ""))
            raise SystemExit(130) from None
        except Exception as error:
            if not isinstance(error, Busy) and (folder / "run.json").exists() and not there:
                tell(f"[red]failed[/red]; what was finished is kept: trainlore resume {esc(folder)}")
            raise
    if leads:
        _table(folder)


def _table(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())
    rows = [
        [
            str(s["number"]),
            s["name"],
            "$" + s["as"],
            f"{s['work']:.2g}" if s["work"] else "",
            f"{s['seconds']:.1f}" + ("*" if s["cached"] else ""),
            brief(s),
        ]
        for s in record["steps"]
    ]
    titles = ["", "step", "gave", "work", "seconds", "result"]
    sides = ["right", "left", "left", "right", "right", "left"]
    out = console.table(zip(titles, sides, strict=True), rows, 160, overflow="fold")
    total = sum(s["seconds"] for s in record["steps"] if not s["cached"])
    out.print(
        f"\n{total:.0f} s, {record['meter']['work']:.3g} FLOPs"
        + ("   (* from an earlier run)" if any(s["cached"] for s in record["steps"]) else "")
    )
    if dead := sorted({e["part"] for s in record["steps"] for e in s["effects"] if e["dead"]}):
        out.print(f"[red]dead switches: {', '.join(dead)} did nothing[/red]")
    out.print(f"report: [bold]{esc(folder / 'report.html')}[/bold]", highlight=False, soft_wrap=True)


def brief(step: dict[str, Any]) -> str:
    """A finished step's result in a few words."""
    if step["noun"] == "Data":
        words = f"{step['data']['rows']:,} rows"
        return words + (f" of {step['rows_in']:,}" if step.get("rows_in") and not step.get("made") else "")
    if step["noun"] == "Model":
        words = f"{step['model']['size'] / 1e6:.2f} M weights"
        learned = step.get("curve") and step["kind"] == "Fit"
        return words + (f", loss {step['curve']['loss'][-1]:.3f}" if learned else "")
    return ", ".join(f"{m['metric']} {m['value']:.4g}" for m in step["report"][:3])
