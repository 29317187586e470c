"""Recipes before anything is trained: `validate`, `prepare`, `cp`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trainlore.cli.options import Sets
from trainlore.cli.shipped import FIRST, recipe_path, starters
from trainlore.console import esc, say
from trainlore.errors import Bad


def validate(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a starter.")], sets: Sets = None
) -> None:
    """Check a recipe without running it: every error at once, with the nearest names. Loads no method."""
    from trainlore import recipe as recipes

    made = recipes.read(recipe_path(recipe), sets)
    for step in made.steps:
        wires = ", ".join(f"${w}" for w in step.wires.values())
        parts = f"  with {', '.join(p for p, _ in step.parts)}" if step.parts else ""
        say(f"{step.where:32s} {wires} → ${step.gives}{parts}")
    say(f"[green]{len(made.steps)} steps, no errors[/green]")


def prepare(
    recipe: Annotated[str, typer.Argument(help="A recipe file or the name of a starter.")] = FIRST,
    debug: Annotated[
        bool, typer.Option(help="Show tokens, masks, packed boundaries, kept and dropped rows with scores.")
    ] = False,
    rows: Annotated[int, typer.Option(min=1, help="How many rows to show of each.")] = 3,
    out: Annotated[Path | None, typer.Option(help="Keep the prepared data here (default: runs/prepared-NAME).")] = None,
    sets: Sets = None,
) -> None:
    """Run only the steps that make data, up to the first training, and show what a model would see."""
    from trainlore import prepare as preparing
    from trainlore import recipe as recipes
    from trainlore.folders import slug

    made = recipes.read(recipe_path(recipe), sets)
    preparing.prepare(made, out or Path("runs") / f"prepared-{slug(made.spec.name)}", debug, rows)


def cp(
    name: Annotated[str | None, typer.Argument(help="A starter recipe.")] = None,
    to: Annotated[Path, typer.Argument(help="Where to put it.")] = Path("."),
    force: Annotated[bool, typer.Option(help="Replace the file if it exists.")] = False,
) -> None:
    """Copy a starter recipe here, to be changed. Without a name, list them."""
    found = {p.stem: p for p in starters()}
    if name is None:
        for stem, path in found.items():
            titles = [line.partition("name:")[2] for line in path.read_text().splitlines() if line.startswith("name:")]
            say(f"[bold]{stem}[/bold]  {titles[0].strip() if titles else ''}")
        return
    if name not in found:
        from trainlore.registry import near

        raise Bad(f"no starter recipe {name!r}" + (near(name, found) or f"; there are {', '.join(found)}"))
    target = to / f"{name}.yaml" if to.is_dir() else to
    if target.exists() and not force:
        raise Bad(f"{target} exists: say --force to replace it")
    if not target.parent.is_dir():
        raise Bad(f"cannot write {target}: there is no folder {target.parent}")
    target.write_text(found[name].read_text())
    say(f"{esc(target)}; run it with: trainlore run {esc(target)}")
