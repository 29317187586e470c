"""One step of a run: from the store if it was finished before, else run, measured and kept."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from trainlore.building import build
from trainlore.console import esc
from trainlore.errors import Bad
from trainlore.execute import telling
from trainlore.execute.record import Book
from trainlore.given import Noun
from trainlore.nouns import Data, Model, Report
from trainlore.recipe import TRAIN, Step, convert, refs
from trainlore.registry import entry
from trainlore.runs import Run
from trainlore.store import Store, hash_of, write
from trainlore.team import Team

ENGINE = 1  # part of every step's key: raised when the engine itself would give other numbers
SPENT = ("forward", "backward", "tokens", "rows", "steps")  # counted by the meter


@dataclasses.dataclass
class Scene:
    """What the steps of one run share."""

    run: Run
    book: Book
    store: Store | None  # where finished steps lie
    nouns: dict[str, Noun]  # so far, by name
    strict: bool  # whether a part that did nothing is an error
    tell: Callable[[str], None]


def take(scene: Scene, number: int, step: Step) -> Noun:
    """Run the step or find it in the store; what it gives."""
    run, store = scene.run, scene.store
    run.label, run._fits, run._passes = f"{number:02d}-{step.gives}", 0, 0
    run.effects, run.parity = [], []
    step = _rest(scene, step)
    key = _key(scene, step)
    if store is not None and step.name != "save" and Team().told(store.has(key)):
        return _known(scene, store, number, step, key)
    if store is not None and not run.heat.alone:
        with store.claimed(key):  # two runs of a race that want the same step: one makes it, the other waits for it
            if store.has(key):
                return _known(scene, store, number, step, key)
            return _anew(scene, number, step, key)
    return _anew(scene, number, step, key)


@functools.cache
def shared() -> str:
    """The hash of the primitives, on which any method may stand: part of every step's key."""
    sources = sorted((Path(__file__).parents[1] / "primitives").glob("*.py"))
    return hash_of([path.read_text() for path in sources])


def _key(scene: Scene, step: Step) -> str:
    """The hash of all that makes the step's result what it is."""
    asked = refs(step.fields) | refs([f for _, f in step.parts]) | set(step.wires.values())
    made_from = {name: scene.nouns[name].key for name in sorted(asked)}
    sources = [entry(m)["source"] for m in (step.name, *(p for p, _ in step.parts)) if m not in ("train", "save")]
    read = sorted(files({**step.fields, "with": [f for _, f in step.parts]}))
    seed = scene.run.seed
    return hash_of(ENGINE, shared(), step.name, sources, step.fields, step.wires, step.parts, made_from, read, seed)


def files(value: Any) -> set[tuple[str, int, int]]:
    """The files that are named anywhere in a field, with their size and time: answers are added to a file of labels."""
    if isinstance(value, dict | list | tuple):
        return set().union(*map(files, value.values() if isinstance(value, dict) else value))
    try:
        if not isinstance(value, str) or not (path := Path(value).expanduser()).is_file():
            return set()
        return {(value, (stat := path.stat()).st_size, stat.st_mtime_ns)}
    except (OSError, ValueError):  # a text that is no path
        return set()


def _rest(scene: Scene, step: Step) -> Step:
    """The step with what is left of the budget in the place of the word "rest"."""
    units = [k for k, v in step.fields.items() if v == "rest"] if step.name == "train" else []
    if not units:
        return step
    budget = scene.run.heat.budget
    if budget is None or budget[0] != units[0]:
        raise Bad(f"{step.where}: {units[0]}: rest is for races, which have a budget; say a number")
    unit, most = budget
    timed = unit == "seconds"
    paid = sum(s["seconds"] for s in scene.book.record["steps"]) if timed else getattr(scene.run.meter, unit)
    if (left := most - paid) <= 0:
        raise Bad(f"{step.where}: nothing is left of {most:.4g} {unit}: {paid:.4g} were spent before this training")
    left = float(left) if unit in ("work", "seconds") else int(left)
    return msgspec.structs.replace(step, fields={**step.fields, unit: left})


def _known(scene: Scene, store: Store, number: int, step: Step, key: str) -> Noun:
    """A step that the store holds: paid for as if it had run."""
    run, book = scene.run, scene.book
    record = {**store.record(key)["record"], "cached": True}
    if "look" not in record:  # a race made it
        record |= _looked(scene, step, lambda: store.get(key))
    book.add(number, step, key, record)
    for unit in SPENT:
        setattr(run.meter, unit, getattr(run.meter, unit) + record.get(unit, 0))
    scene.tell(f"{number:2d}/{len(book.recipe.steps)} {step.name} → ${step.gives}  [dim](from the store)[/dim]")
    return Noun(key, lambda: store.get(key))


def _anew(scene: Scene, number: int, step: Step, key: str) -> Noun:
    """A step that has to be run."""
    run, book, store = scene.run, scene.book, scene.store
    scene.tell(f"{number:2d}/{len(book.recipe.steps)} {step.name} → ${step.gives}")
    book.begin(number, step, key)
    before, start = run.meter.state(), time.perf_counter()
    if book.folder is not None:
        _of_this_step(book.folder / "checkpoints", run.label, key)
    Team().wait()  # before the others look for checkpoints
    result = _run(scene, step)
    after = run.meter.state()
    record = {k: after[k] - before[k] for k in (*SPENT, "work")}
    record |= {
        "seconds": time.perf_counter() - start,
        "peak": after["peak"],
        "effects": run.effects,
        "parity": run.parity,
        "cached": False,
    }
    if step.name == "train" and (told := result.about.get("compiled")):
        record["compiled"] = told
        outside = f"; outside the graphs: {', '.join(told['outside'])}" if told["outside"] else ""
        scene.tell(f"   [dim]compiled {told['pieces']} blocks by {told['backend']}{esc(outside)}[/dim]")
    if dead := [e["part"] for e in run.effects if e["dead"]]:
        message = f"{step.where}: {', '.join(dead)} did nothing in any step that was looked at: a dead switch"
        scene.tell(f"   [red]{message}[/red]")
        if scene.strict:
            raise Bad(message + "; set it to its null, mend its fields, or run without --strict")
    record |= telling.describe(result)
    record |= _looked(scene, step, lambda: result)
    if isinstance(result, Report) and book.folder is not None:
        telling.outcomes(result, book.folder / "outcomes" / f"{run.label}.parquet")
    team = Team()
    if isinstance(result, Data) and not team.agrees(result.ids.tobytes()):
        raise Bad(f"{step.where}: {step.name} came out different on {team.size} processes: run this step on one")
    wanted = step.name != "save" and step.gives != run.heat.watched and team.leads
    kept = store is not None and wanted and store.put(key, result, {"record": record})
    book.add(number, step, key, record)
    if book.folder is not None and kept:  # of a step that cannot be kept the checkpoints are what a resumed run has
        _forget(book.folder / "checkpoints", run.label)
    team.wait()
    return Noun(key, lambda: result)


def _of_this_step(folder: Path, label: str, key: str) -> None:
    """Forget the checkpoints of a step that was another when they were written: its method, say, was changed since."""
    mark = folder / f"{label}.key"
    if mark.exists() and mark.read_text() == key:
        return
    _forget(folder, label)
    write(mark, key)


def _forget(folder: Path, label: str) -> None:
    """Remove the checkpoints of one step, and their folder if it was the last."""
    (folder / f"{label}.key").unlink(missing_ok=True)
    for place in folder.glob(f"{label}-*"):
        shutil.rmtree(place, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def _looked(scene: Scene, step: Step, out: Callable[[], Any]) -> dict[str, Any]:
    """What a step on data kept and dropped, where there will be a report to draw it."""
    if step.kind != "Curate" or scene.book.folder is None or not scene.run.heat.alone:
        return {}
    return telling.looked(scene.nouns[step.wires["data"]].get, out)


def _run(scene: Scene, step: Step) -> Any:
    run, nouns = scene.run, scene.nouns

    def noun(name: str, moved: bool) -> Any:
        value = nouns[name].get()
        return value if moved or not isinstance(value, Model) else value.copy()

    main = {wire: noun(name, name in step.last and wire == "model") for wire, name in step.wires.items()}
    if step.name == "save":
        return _save(run, step, main["model"])
    if step.name == "train":
        parts = [build(name, fields, nouns) for name, fields in step.parts]
        parts += run.heat.watchers if step.gives == run.heat.watched else ()
        return _train(scene, main["model"], main["data"], parts, step)
    return run.step(build(step.name, step.fields, nouns), *main.values())


def _save(run: Run, step: Step, model: Model) -> Model:
    if run.folder is None:
        raise Bad("save needs a run folder: say --out")
    to = run.folder / str(step.fields.get("to", "model"))
    if run.folder.resolve() not in to.resolve().parents:
        raise Bad(f"save writes below the run folder only, not to {to}")
    if Team().leads:
        model.save(to, card=telling.model_card(model, run))
    return model


def _train(scene: Scene, model: Model, data: Any, parts: list[Any], step: Step) -> Model:
    run, fields = scene.run, {k: convert(v, TRAIN[k]) for k, v in step.fields.items()}
    scene.tell(f"   [dim]{_where(fields)}[/dim]")
    before, start = run.meter.work, time.perf_counter()
    model = run.fit(model, data, *parts, **fields)
    spent = {"seconds": time.perf_counter() - start, "work": run.meter.work - before}
    model.trail = (*model.trail, {"method": "train", "step": run.label, **spent})
    return model


def _where(fields: dict[str, Any]) -> str:
    """The device, the precision and the processes that a training with these fields runs with."""
    from trainlore.placement import choose_device, chosen_precision

    team = Team()
    device = choose_device(fields.get("device", "auto"), team.size)
    kind = str(chosen_precision(fields.get("precision", "auto"), device)).removeprefix("torch.")
    several = f", {team.size} processes" + ", weights shared out" * bool(fields.get("shard")) if team.size > 1 else ""
    return f"on {device}, {kind}{several}"
