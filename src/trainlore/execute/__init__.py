"""Running a planned recipe: its steps in their order, and a folder that tells what happened.

`step` runs one of them or finds it in the store, `record` keeps run.json, `telling` puts nouns and choices into words and
numbers for it. None of them asks anything of this file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainlore import cluster, folders, needs, reporting
from trainlore.errors import Bad, Busy
from trainlore.execute import telling
from trainlore.execute.record import Book
from trainlore.execute.step import Scene, take
from trainlore.given import Noun, given
from trainlore.recipe import Recipe, Step
from trainlore.runs import Interrupted, Run
from trainlore.store import Store
from trainlore.team import started
from trainlore.trees import full

LETS_GO = 3.0  # seconds in which the processes of a killed run see that they are to end


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
    team, heat = started(), heat or Heat()
    with contextlib.ExitStack() as held:
        folder = None
        if out is not None:
            folder = folders.allowed(recipe, Path(out), force, resume) if team.leads else Path(out)
        if folder is not None and team.leads and folder.is_dir():
            with _alone(folder):  # nobody else is at work there
                pass
        nouns: dict[str, Noun] = {
            k: heat.ready[k] if k in heat.ready else given(k, source, recipe.spec.seed)
            for k, source in recipe.spec.given.items()
        }
        if heat.alone:  # of a race, its preflight said so
            needs.held_against(needs.of_steps(recipe.steps, lambda name: nouns[name].get() if name in nouns else None))
        if folder is not None and team.leads:
            if not resume or folders.hardly_begun(folder):
                folders.begin(recipe, folder)
            held.enter_context(_alone(folder))
        team.wait()
        run = Run(recipe.spec.seed, folder, bars, on=on, profile=profile)
        run.heat = heat
        book = Book(recipe, run, folder if team.leads else None)
        place = heat.store or (folder.resolve().parent / ".store" if folder is not None else None)
        scene = Scene(run, book, Store(place) if place is not None else None, nouns, strict, tell)
        told = reporting.trackers(report_to if team.leads else (), folder or Path("."), recipe.spec.name)
        try:
            with told as run.trackers, _interruptible(run), run.meter.running():
                chosen = _lived(scene, recipe.steps)
        except Interrupted:
            book.close("interrupted")
            raise
        except BaseException as error:
            with contextlib.suppress(Bad, OSError):  # the disk may be full
                book.close("failed", f"{type(error).__name__}: {error}")
            if isinstance(error, OSError) and (why := full(error, Path(error.filename or folder or "."))) is not error:
                raise why from error
            raise
        book.record["agreement"] = telling.agreement(chosen)
        book.close("finished")
        team.wait()
        if book.folder is not None:
            shutil.rmtree(book.folder / "checkpoints", ignore_errors=True)  # of models that the store cannot keep
            if heat.alone:
                from trainlore import page

                page.write(book.folder)
    wanted = nouns if heat.alone else {recipe.steps[-1].gives}
    return {name: noun.get() for name, noun in nouns.items() if not noun.gone and name in wanted}


def _lived(scene: Scene, steps: list[Step]) -> list[telling.Choice]:
    """Run the steps one after another; those that chose some rows of their data."""
    chosen: list[telling.Choice] = []
    nouns, run, done = scene.nouns, scene.run, scene.book.record["steps"]
    for number, step in enumerate(steps, 1):
        pool = nouns.get(step.wires.get("data", ""))
        nouns[step.gives] = take(scene, number, step)
        if pool is not None and (done[-1].get("look") or {}).get("rows"):
            chosen.append((done[-1], pool, nouns[step.gives]))
        moved = step.wires.get("model") if step.kind in ("Shape", "Fit") else None
        if moved in step.last and moved != step.gives:
            nouns[moved].forget()  # it was moved into the step, not copied, and is another model now
        if run.interrupted and number < len(steps):
            raise Interrupted
    return chosen


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the run's folder: two processes that went on with one run would write into each other's files.

    A process that dies lets go, if it was one of several a moment later.
    """
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        until = time.monotonic() + LETS_GO
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Busy(f"another process is at work in {folder}: wait for its end, or stop it first") from None
                time.sleep(0.1)
            except OSError:  # a file system that knows no locks of folders
                break
        yield
    finally:
        os.close(handle)


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
