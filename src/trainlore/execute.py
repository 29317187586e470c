"""Running a planned recipe: nouns by name, finished steps from the store, and a folder that tells what happened."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import platform
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trainlore import cluster, looking, reporting
from trainlore import store as stores
from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.recipe import TRAIN as TRAIN_TYPES
from trainlore.recipe import Recipe, Step, convert, refs
from trainlore.registry import entry, load, near
from trainlore.runs import Interrupted, Run
from trainlore.team import Team, started
from trainlore.units import amount

ENGINE = 1  # part of every step's key: raised when the engine itself would give other numbers


@functools.cache
def shared() -> str:
    """The hash of the primitives, on which any method may stand: part of every step's key."""
    sources = sorted((Path(__file__).parent / "primitives").glob("*.py"))
    return stores.hash_of([path.read_text() for path in sources])


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
        folder = _allowed(recipe, Path(out), force, resume) if team.leads else Path(out)
    heat = heat or Heat()
    nouns: dict[str, Noun] = {
        k: heat.ready[k] if k in heat.ready else given(k, source, recipe.spec.seed)
        for k, source in recipe.spec.given.items()
    }
    if folder is not None and team.leads and (not resume or hardly_begun(folder)):
        _made(recipe, folder)
    team.wait()
    run = Run(recipe.spec.seed, folder, bars, on=on, profile=profile)
    run.heat = heat
    book = _Book(recipe, run, folder if team.leads else None)
    place = heat.store or (folder.resolve().parent / ".store" if folder is not None else None)
    store = stores.Store(place) if place is not None else None
    chosen: list[
        tuple[dict[str, Any], Noun, Noun]
    ] = []  # steps that narrowed their data, what they read and what they gave
    try:
        told = reporting.trackers(report_to if team.leads else (), folder or Path("."), recipe.spec.name)
        with told as run.trackers, _interruptible(run), run.meter.running():
            for number, step in enumerate(recipe.steps, 1):
                pool = nouns.get(step.wires.get("data", ""))
                nouns[step.gives] = _one(run, book, store, number, step, nouns, strict, tell)
                if pool is not None and (book.record["steps"][-1].get("look") or {}).get("rows"):
                    chosen.append((book.record["steps"][-1], pool, nouns[step.gives]))
                if (
                    step.kind in ("Shape", "Fit")
                    and (moved := step.wires.get("model")) in step.last
                    and moved != step.gives
                ):
                    nouns[moved].forget()  # it was moved into the step, not copied, and is another model now
                if run.interrupted and number < len(recipe.steps):
                    raise Interrupted
    except Interrupted:
        book.close("interrupted")
        raise
    except BaseException as error:
        book.close("failed", f"{type(error).__name__}: {error}")
        raise
    book.record["agreement"] = _agreement(chosen)
    book.close("finished")
    team.wait()
    if folder is not None and heat.alone and team.leads:
        from trainlore import page

        page.write(folder)
    wanted = nouns if heat.alone else {recipe.steps[-1].gives}
    return {name: noun.get() for name, noun in nouns.items() if not noun.gone and name in wanted}


@dataclasses.dataclass
class Heat:
    """What a race says of a run that is one of many: what is there already, who looks on, and what may be spent."""

    ready: dict[str, Any] = dataclasses.field(default_factory=dict)  # given nouns that are there already, by name
    store: Path | None = None  # where finished steps are shared with the other runs
    watched: str = ""  # the training, by what it gives, that watchers look on at
    watchers: tuple[Any, ...] = ()  # parts that change nothing
    budget: tuple[str, float] | None = None  # unit and amount of which a training marked "rest" takes what is left
    alone: bool = True  # whether the run writes a report of its own


class Noun:
    """A noun by the key of what made it, fetched when somebody wants it."""

    def __init__(self, key: str, fetch: Callable[[], Any]) -> None:
        self.key, self.fetch, self.gone = key, fetch, False
        self.value: Any = None

    def get(self) -> Any:
        if self.value is None:
            self.value = self.fetch()
        return self.value

    def forget(self) -> None:
        self.value, self.gone = None, True


def given(name: str, source: Any, seed: int) -> Noun:
    """A noun from outside. Data is known by its content, a preset by its name, a folder by its weights."""
    from trainlore.sources import PRESETS, noun_of

    noun = noun_of(source)
    options = dict(source) if isinstance(source, dict) else {}
    what = options.pop(noun.lower(), source)
    if noun == "Data":
        skip, rows, sample = (_count(name, k, options.pop(k, None)) for k in ("skip", "rows", "sample"))
        share = options.pop("share", None)
        _known(name, options, ("errors",), "data, share, skip, rows, sample, errors")
        data = Data.of(what, **options)
        if share is not None:
            data = _shared(name, data, share)
        if skip is not None or rows is not None:
            if (skip or 0) >= len(data):
                raise Bad(f"given {name}: skip {skip} leaves nothing of {len(data)} rows")
            data = Data(data.table.slice(skip or 0, rows))
        if sample is not None:  # a table of its own, so that what is added later is as long as the sample
            rows_ = np.sort(Run(seed).numpy("given", name).permutation(len(data))[:sample])
            data = Data(data.table.take(rows_), base_ids=rows_)
        made = Noun(stores.hash_of("data", data.fingerprint), lambda: data)
        made.value = data
        return made
    text = str(what).removeprefix("preset:")
    if text in PRESETS:
        from trainlore.nouns.hugging import fields, preset

        _known(name, options, fields(text), ", ".join(("model", "seed", "vocab", "window", *PRESETS[text][1])))
        options.setdefault("seed", seed)
        return Noun(stores.hash_of("preset", text, options), lambda: preset(text, **options))
    _known(name, options, ("kind", "seed", "remote_code"), "model, kind, seed, remote_code")
    model = Model.of(what, **options)
    return Noun(stores.hash_of("model", model.fingerprint), lambda: model)


def _shared(name: str, data: Data, share: Any) -> Data:
    """The rows whose own number between 0 and 1 lies in [low, high): shares that do not meet have no row in common."""
    low, high = share if isinstance(share, list | tuple) and len(share) == 2 else (None, None)
    if not (isinstance(low, int | float) and isinstance(high, int | float) and 0 <= low < high <= 1):
        raise Bad(f"given {name}: share is [low, high] between 0 and 1, not {share!r}")
    place = Run(0).numpy("given", "share").permutation(len(data)) / max(1, len(data))
    rows = np.flatnonzero((place >= low) & (place < high))
    if not len(rows):
        raise Bad(f"given {name}: share {share} leaves nothing of {len(data)} rows")
    return Data(data.table.take(rows), base_ids=rows)


def _known(name: str, options: dict[str, Any], known: Any, shown: str) -> None:
    if lost := [k for k in options if k not in known]:
        raise Bad(f"given {name}: no option {lost[0]!r}" + (near(lost[0], known) or f"; there are {shown}"))


def _count(name: str, what: str, value: Any) -> int | None:
    """A number of rows as people write it."""
    try:
        number = None if value is None else amount(value)
    except Bad as error:
        raise Bad(f"given {name}: {what}: {error}") from None
    if number is not None and (number < 1 or number != int(number)):
        raise Bad(f"given {name}: {what} must be a whole number above 0, not {value!r}")
    return None if number is None else int(number)


def _one(
    run: Run,
    book: _Book,
    store: stores.Store | None,
    number: int,
    step: Step,
    nouns: dict[str, Noun],
    strict: bool,
    tell: Callable[[str], None],
) -> Noun:
    """One step: from the store if it was finished before, else run, measured and kept."""
    label = f"{number:02d}-{step.gives}"
    run.label, run._fits, run.effects, run.parity = label, 0, [], []
    step = _rest(run, book, step)
    made_from = {
        n: nouns[n].key for n in sorted(refs(step.fields) | refs([f for _, f in step.parts]) | set(step.wires.values()))
    }
    sources = [entry(m)["source"] for m in (step.name, *(p for p, _ in step.parts)) if m not in ("train", "save")]
    key = stores.hash_of(ENGINE, shared(), step.name, sources, step.fields, step.wires, step.parts, made_from, run.seed)
    title = "train" if step.name == "train" else step.name
    team = Team()
    if store is not None and step.name != "save" and team.told(store.has(key)):
        return _known_before(run, book, store, number, step, nouns, key, tell)
    if store is not None and not run.heat.alone:
        with store.claimed(key):  # two runs of a race that want the same step: one makes it, the other waits for it
            if store.has(key):
                return _known_before(run, book, store, number, step, nouns, key, tell)
            return _anew(run, book, store, number, step, nouns, key, title, strict, tell)
    return _anew(run, book, store, number, step, nouns, key, title, strict, tell)


def _rest(run: Run, book: _Book, step: Step) -> Step:
    """The step with what is left of the budget in the place of the word "rest"."""
    units = [k for k, v in step.fields.items() if v == "rest"] if step.name == "train" else []
    if not units:
        return step
    if run.heat.budget is None or run.heat.budget[0] != units[0]:
        raise Bad(f"{step.where}: {units[0]}: rest is for races, which have a budget; say a number")
    unit, amount_ = run.heat.budget
    paid = sum(s["seconds"] for s in book.record["steps"]) if unit == "seconds" else getattr(run.meter, unit)
    if (left := amount_ - paid) <= 0:
        raise Bad(f"{step.where}: nothing is left of {amount_:.4g} {unit}: {paid:.4g} were spent before this training")
    left = float(left) if unit in ("work", "seconds") else int(left)
    return msgspec.structs.replace(step, fields={**step.fields, unit: left})


def _known_before(
    run: Run,
    book: _Book,
    store: stores.Store,
    number: int,
    step: Step,
    nouns: dict[str, Noun],
    key: str,
    tell: Callable[[str], None],
) -> Noun:
    """A step that the store holds: paid for as if it had run."""
    record = {**store.record(key)["record"], "cached": True}
    if "look" not in record:  # a race made it
        record |= _looked(run, book, step, nouns, lambda: store.get(key))
    book.add(number, step, key, record)
    for unit in ("forward", "backward", "tokens", "rows", "steps"):
        setattr(run.meter, unit, getattr(run.meter, unit) + record.get(unit, 0))
    tell(f"{number:2d}/{len(book.recipe.steps)} {step.name} → ${step.gives}  [dim](from the store)[/dim]")
    return Noun(key, lambda: store.get(key))


def _anew(
    run: Run,
    book: _Book,
    store: stores.Store | None,
    number: int,
    step: Step,
    nouns: dict[str, Noun],
    key: str,
    title: str,
    strict: bool,
    tell: Callable[[str], None],
) -> Noun:
    """A step that has to be run."""
    label = f"{number:02d}-{step.gives}"
    tell(f"{number:2d}/{len(book.recipe.steps)} {title} → ${step.gives}")
    book.begin(number, step, key)
    before, start = run.meter.state(), time.perf_counter()
    result = _run(run, step, nouns)
    after = run.meter.state()
    record = {k: after[k] - before[k] for k in ("forward", "backward", "tokens", "rows", "steps", "work")}
    record |= {
        "seconds": time.perf_counter() - start,
        "peak": after["peak"],
        "effects": run.effects,
        "parity": run.parity,
        "cached": False,
    }
    if dead := [e["part"] for e in run.effects if e["dead"]]:
        message = f"{step.where}: {', '.join(dead)} did nothing in any step that was looked at: a dead switch"
        tell(f"   [red]{message}[/red]")
        if strict:
            raise Bad(message + "; set it to its null, mend its fields, or run without --strict")
    record |= describe(result)
    record |= _looked(run, book, step, nouns, lambda: result)
    if isinstance(result, Report) and book.folder is not None:
        _outcomes(result, book.folder / "outcomes" / f"{label}.parquet")
    team = Team()
    wanted = store is not None and step.name != "save" and step.gives != run.heat.watched and team.leads
    kept = wanted and store is not None and store.put(key, result, {"record": record})
    book.add(number, step, key, record)
    if book.folder is not None and kept:
        shutil.rmtree(book.folder / "checkpoints", ignore_errors=True)
    team.wait()
    made = Noun(key, lambda: result)
    made.value = result
    return made


def _run(run: Run, step: Step, nouns: dict[str, Noun]) -> Any:
    def noun(name: str, moved: bool) -> Any:
        value = nouns[name].get()
        return value if moved or not isinstance(value, Model) else value.copy()

    main = {wire: noun(name, name in step.last and wire == "model") for wire, name in step.wires.items()}
    if step.name == "save":
        if run.folder is None:
            raise Bad("save needs a run folder: say --out")
        to = run.folder / str(step.fields.get("to", "model"))
        if run.folder.resolve() not in to.resolve().parents:
            raise Bad(f"save writes below the run folder only, not to {to}")
        if Team().leads:
            main["model"].save(to, card=model_card(main["model"], run))
        return main["model"]
    if step.name == "train":
        parts = [build(name, fields, nouns) for name, fields in step.parts]
        parts += run.heat.watchers if step.gives == run.heat.watched else ()
        fields = {k: convert(v, TRAIN_TYPES[k]) for k, v in step.fields.items()}
        before = run.meter.work
        start = time.perf_counter()
        model = run.fit(main["model"], main["data"], *parts, **fields)
        model.trail = (
            *model.trail,
            {
                "method": "train",
                "step": run.label,
                "seconds": time.perf_counter() - start,
                "work": run.meter.work - before,
            },
        )
        return model
    return run.step(build(step.name, step.fields, nouns), *main.values())


def build(name: str, fields: dict[str, Any], nouns: dict[str, Any]) -> Any:
    """The method with its fields converted to their annotated types, `$names` to nouns and nested methods built."""
    cls, types = load(name), entry(name)["fields"]

    def resolve(value: Any, type_: str) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            noun = nouns[value[1:]]
            noun = noun.get() if isinstance(noun, Noun) else noun
            return (noun,) if type_.startswith(("tuple", "list")) and not isinstance(noun, list | tuple) else noun
        if re.search(r"\b(Part|Measure|Curate|Shape|Fit)\b", type_) and value is not None:
            many = value if isinstance(value, list) else [value]
            made = tuple(build(*_named(one), nouns) for one in many)
            return made if "tuple" in type_ else made[0]
        if re.search(r"\b(Data|Model|Report)\b", type_) and isinstance(value, list):
            return tuple(resolve(v, "") if isinstance(v, str) else v for v in value)
        return convert(value, type_) if not re.search(r"\b(Data|Model|Report)\b", type_) else value

    return cls(**{k: resolve(v, types[k]["type"]) for k, v in fields.items()})


def _named(one: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(one, str):
        return one, {}
    ((name, fields),) = one.items()
    return name, fields or {}


# ---- telling what happened


def _looked(run: Run, book: _Book, step: Step, nouns: dict[str, Noun], out: Callable[[], Any]) -> dict[str, Any]:
    """What a step on data kept and dropped, for the report; what cannot be looked at stops no run."""
    if step.kind != "Curate" or book.folder is None or not run.heat.alone:
        return {}
    try:
        found = looking.look(nouns[step.wires["data"]].get(), out())
    except Exception as error:
        return {"look": {"error": f"{type(error).__name__}: {error}"}}
    return {"look": found, "columns": found["columns"]} if found else {"look": {}}


def _agreement(chosen: list[tuple[dict[str, Any], Noun, Noun]]) -> list[dict[str, Any]]:
    """How far the steps agree that chose from one pool: each the step's record, its pool and what it gave."""
    pools: dict[str, list[tuple[dict[str, Any], Noun, Noun]]] = {}
    for one in chosen:
        pools.setdefault(one[1].key, []).append(one)
    found = []
    for (first, pool, _), *rest in pools.values():
        if rest:
            mine = [(f"{s['number']} {s['name']}", out.get(), s["look"]) for s, p, out in chosen if p.key == pool.key]
            with contextlib.suppress(Exception):  # a table less in the report, not a run less
                found.append({"pool": first["wires"]["data"], "pairs": looking.agreement(pool.get(), mine)})
    return found


def describe(noun: Any) -> dict[str, Any]:
    """What the run's record says of a noun: composition of data, curve of a model, summary of a report."""
    if isinstance(noun, Data):
        last = noun.trail[-1] if noun.trail else {}
        return {
            "noun": "Data",
            "data": composition(noun),
            **{k: last[k] for k in ("rows_in", "rows_out", "columns", "made") if k in last},
        }
    if isinstance(noun, Model):
        curve = noun.about.get("curve")
        thin = max(1, len(curve["t"]) // 400) if curve else 1
        shown = {k: v[::thin] for k, v in curve.items()} if curve else None
        return {
            "noun": "Model",
            "model": {"class": type(noun.net).__name__, "size": noun.size, "kind": noun.kind},
            "curve": shown,
        }
    return {"noun": "Report", "report": noun.summary()}


def composition(data: Data) -> dict[str, Any]:
    """Rows and characters of each domain, and how long the rows are (characters of text, or tokens)."""
    import pyarrow.compute as pc

    found: dict[str, Any] = {"rows": len(data), "columns": data.columns}
    if not len(data):
        return found
    lengths = None
    if "text" in data.columns:
        lengths = pc.utf8_length(data["text"]).to_numpy(zero_copy_only=False).astype(float)
        found["unit"] = "characters"
    elif "input_ids" in data.columns:
        lengths = np.diff(data.lists("input_ids")[1]).astype(float)
        found["unit"] = "tokens"
    if lengths is not None:
        top = max(1.0, float(np.quantile(lengths, 0.99)))
        counts, edges = np.histogram(np.minimum(lengths, top), bins=30, range=(0, top))
        found |= {"total": float(lengths.sum()), "lengths": {"counts": counts.tolist(), "edges": edges.tolist()}}
        found["median"] = float(np.median(lengths))
    if "domain" in data.columns:
        names, where = np.unique(np.asarray(data["domain"]).astype(str), return_inverse=True)
        weight = lengths if lengths is not None else np.ones(len(data))
        sizes = np.bincount(where, weights=weight)
        rows = np.bincount(where)
        found["domains"] = {
            str(n): {"rows": int(r), "size": float(s)} for n, r, s in zip(names, rows, sizes, strict=True)
        }
    return found


def _outcomes(report: Report, path: Path) -> None:
    """Per-row outcomes of every metric, as one tidy Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    tables = []
    for m in report.measured:
        n = len(m.values)
        rows = m.rows if m.rows is not None and len(m.rows) == n else np.arange(n)
        columns = {"metric": [m.metric] * n, "row": np.asarray(rows, np.int64), "value": m.values}
        tables.append(pa.table(columns | {str(g): list(map(str, v)) for g, v in m.groups.items() if len(v) == n}))
    pq.write_table(pa.concat_tables(tables, promote_options="default"), path)


def model_card(model: Model, run: Run) -> str:
    """The README.md of a saved model: what made it, step by step, and the recipe itself."""
    recipe = (
        (run.folder / "recipe.yaml").read_text()
        if run.folder is not None and (run.folder / "recipe.yaml").exists()
        else ""
    )
    steps = "\n".join(
        f"| {e['method']} | {e.get('step', '')} | {e.get('work', 0):.3g} | {e.get('seconds', 0):.1f} |"
        for e in model.trail
    )
    return (
        "---\nlibrary_name: transformers\ntags: [trainlore]\n---\n\n# A model made by a Trainlore recipe\n\n"
        f"| method | step | work (FLOPs) | seconds |\n|---|---|---|---|\n{steps}\n\n## Recipe\n\n```yaml\n{recipe}```\n"
    )


class _Book:
    """run.json: the state of the run, written whole after every step."""

    def __init__(self, recipe: Recipe, run: Run, folder: Path | None) -> None:
        self.recipe, self.run, self.folder = recipe, run, folder
        self.record: dict[str, Any] = {
            "name": recipe.spec.name,
            "seed": recipe.spec.seed,
            "started": time.time(),
            "state": "running",
            "recipe_hash": stores.hash_of(recipe.text),
            "environment": environment() if folder is not None else {},
            "total": len(recipe.steps),
            "steps": [],
        }
        self.write()
        self.enter()

    def begin(self, number: int, step: Step, key: str) -> None:
        self.record["current"] = {"number": number, "name": step.name, "as": step.gives, "key": key}
        self.write()

    def add(self, number: int, step: Step, key: str, record: dict[str, Any]) -> None:
        self.record.pop("current", None)
        wires = {"fields": step.fields, "wires": step.wires, "with": [{n: f} for n, f in step.parts]}
        self.record["steps"].append(
            {"number": number, "name": step.name, "kind": step.kind, "as": step.gives, "key": key, **wires, **record}
        )
        self.write()

    def close(self, state: str, error: str = "") -> None:
        self.record |= {"state": state, "ended": time.time(), "meter": self.run.meter.state(), "error": error}
        self.write()
        self.enter()

    def enter(self) -> None:
        """The run's line in the ledger."""
        if self.folder is not None:
            brief = {"steps": len(self.record["steps"]), "work": self.run.meter.work}
            whole = self.folder.resolve()
            stores.enter(whole.parent, whole, self.record["name"], self.record["state"], brief)

    def write(self) -> None:
        if self.folder is not None:
            stores.write(self.folder / "run.json", json.dumps(self.record, indent=1, default=_jsonable))


def _jsonable(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else str(value)


def environment() -> dict[str, Any]:
    """What the numbers of a run depend on beside the recipe."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from trainlore import __version__
    from trainlore.claims import commit

    packages = {}
    for name in (
        "torch",
        "transformers",
        "tokenizers",
        "datasets",
        "pyarrow",
        "numpy",
        "scipy",
        "scikit-learn",
        "peft",
    ):
        with contextlib.suppress(PackageNotFoundError):
            packages[name] = version(name)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "trainlore": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **packages,
    }


def _allowed(recipe: Recipe, folder: Path, force: bool, resume: bool) -> Path:
    """The run's folder; refused if it is there, unless forced or gone on with."""
    there = folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not hardly_begun(folder))
    if resume:
        if hardly_begun(folder):
            return folder
        if not (folder / "run.json").exists():
            raise Bad(f"{folder} is not a run: it has no run.json")
        old = json.loads((folder / "run.json").read_text())
        if old["recipe_hash"] != stores.hash_of(recipe.text):
            raise Bad(
                f"the recipe in {folder} is not the one this run began with: put it back, or start anew with "
                f"`trainlore run {folder / 'recipe.yaml'} --out OTHER` (finished steps that did not change are reused)"
            )
        return folder
    if there:
        if not force:
            raise Bad(f"{folder} exists: choose another --out, `trainlore resume {folder}`, or --force to replace it")
        if not (folder / "run.json").exists() and folder.exists():
            raise Bad(f"{folder} is not a run folder, so --force does not remove it: choose another --out")
    return folder


def hardly_begun(folder: Path) -> bool:
    """Whether a run was killed here before it wrote anything but its recipe."""
    inside = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return "recipe.yaml" in inside and all(name == "recipe.yaml" or name.endswith(".part") for name in inside)


def _made(recipe: Recipe, folder: Path) -> None:
    """Make the folder new; whatever run was there is gone."""
    if (folder / "run.json").exists():
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Bad(f"cannot make {folder}: {error.strerror}") from None
    stores.write(folder / "recipe.yaml", recipe.text)


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
