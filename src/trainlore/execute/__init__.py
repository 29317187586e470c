"""Running a planned recipe: its steps in their order, and a folder that tells what happened.

`step` runs one of them or finds it in the store, `record` keeps run.json, `telling` puts nouns and choices into words and
numbers for it. None of them asks anything of this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainlore import cluster, folders, needs, reporting
from trainlore.execute import telling
from trainlore.execute.record import Book
from trainlore.execute.step import Scene, take
from trainlore.given import Noun, given
from trainlore.recipe import Recipe
from trainlore.runs import Interrupted, Run
from trainlore.store import Store
from trainlore.team import started


@dataclasses.dataclass
class Heat:
    """What a race says of a run that is one of many: what is there already, who looks on, and what may be spent."""

    ready: dict[str, Any] = dataclasses.field(default_factory=dict)  # given nouns that are there already, by name
    store: Path | None = None  # where finished steps are shared with the other runs
    watched: str = ""  # the training, by what it gives, that watchers look on at
    watchers: tuple[Any, ...] = ()  # parts that change nothing
    budget: tuple[str, float] | None = None  # unit and amount of which a training marked "rest" takes what is left
    alone: bool = True  # whether the run writes a report of its own


def execute(
    recipe: Recipe,
    out: str | Path | None = None,
    force: bool = False,
    strict: bool = False,
    bars: Any = None,
    resume: bool = False,
    tell: Callable[[str], None] = lambda text: None,
    heat: Heat | None = None,
    on: str = "local",
    profile: bool = False,
    report_to: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Run every step; give the nouns by name. With `out`, keep everything in that folder and reuse finished steps.

    `heat`: what a race adds to a run that is one of many.
    `on`: where passes over very many rows run, "local" or "ray".
    `profile`: trainings write a trace of a few steps.
    `report_to`: trackers that are told the numbers of trainings too: tensorboard, mlflow, wandb.

    Under `torchrun` all processes run every step, trainings share their batches out, and the first one writes.
    """
    cluster.check(on)
    team = started()
    folder = None
    if out is not None:
        folder = folders.allowed(recipe, Path(out), force, resume) if team.leads else Path(out)
    heat = heat or Heat()
    nouns: dict[str, Noun] = {
        k: heat.ready[k] if k in heat.ready else given(k, source, recipe.spec.seed)
        for k, source in recipe.spec.given.items()
    }
    if heat.alone:  # of a race, its preflight said so
        needs.held_against(needs.of_steps(recipe.steps, lambda name: nouns[name].get() if name in nouns else None))
    if folder is not None and team.leads and (not resume or folders.hardly_begun(folder)):
        folders.begin(recipe, folder)
    team.wait()
    run = Run(recipe.spec.seed, folder, bars, on=on, profile=profile)
    run.heat = heat
    book = Book(recipe, run, folder if team.leads else None)
    place = heat.store or (folder.resolve().parent / ".store" if folder is not None else None)
    scene = Scene(run, book, Store(place) if place is not None else None, nouns, strict, tell)
    chosen: list[telling.Choice] = []
    try:
        told = reporting.trackers(report_to if team.leads else (), folder or Path("."), recipe.spec.name)
        with told as run.trackers, _interruptible(run), run.meter.running():
            for number, step in enumerate(recipe.steps, 1):
                pool = nouns.get(step.wires.get("data", ""))
                nouns[step.gives] = take(scene, number, step)
                if pool is not None and (book.record["steps"][-1].get("look") or {}).get("rows"):
                    chosen.append((book.record["steps"][-1], pool, nouns[step.gives]))
                moved = step.wires.get("model") if step.kind in ("Shape", "Fit") else None
                if moved in step.last and moved != step.gives:
                    nouns[moved].forget()  # it was moved into the step, not copied, and is another model now
                if run.interrupted and number < len(recipe.steps):
                    raise Interrupted
    except Interrupted:
        book.close("interrupted")
        raise
    except BaseException as error:
        book.close("failed", f"{type(error).__name__}: {error}")
        raise
    book.record["agreement"] = telling.agreement(chosen)
    book.close("finished")
    team.wait()
    if folder is not None and heat.alone and team.leads:
        from trainlore import page

        page.write(folder)
    wanted = nouns if heat.alone else {recipe.steps[-1].gives}
    return {name: noun.get() for name, noun in nouns.items() if not noun.gone and name in wanted}


@contextlib.contextmanager
def _interruptible(run: Run) -> Iterator[None]:
    """The first Ctrl-C asks the run to stop at the next safe place; the second does not ask."""

    def ask(number: int, frame: Any) -> None:
        if run.interrupted:
            signal.default_int_handler(number, frame)
        run.interrupted = True
        sys.stderr.write("\nstopping at the next safe place (again to stop at once)\n")

    try:
        old = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: then nobody presses Ctrl-C here
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, old)
