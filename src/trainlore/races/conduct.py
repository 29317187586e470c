"""Running a race: shared work once, a pilot that says what it will cost, heats in parallel, and nothing lost on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trainlore import recipe as recipes
from trainlore import store as stores
from trainlore.console import esc
from trainlore.errors import Bad
from trainlore.races import heat as heats
from trainlore.races import page, preflight, profiles, rungs, tuning, verdict
from trainlore.races.spec import Arm, Race, _kind, prepared, read, recipe_of
from trainlore.races.workers import workers
from trainlore.registry import index

Tell = Callable[[str], None]


@dataclasses.dataclass
class How:
    """The options of a race that its file does not hold; kept in race.json, so that a resumed race goes on alike."""

    jobs: int = 0  # processes at a time; 0: one a core, divided by the race's threads
    on: str = "local"
    tune: int = 0  # trials for each arm
    halving: bool = False  # drop losing arms at rungs of the training
    exploratory: bool = False  # one seed, and no verdict
    allow_overlap: bool = False
    keep: bool = False  # keep the nouns of finished steps


class Conductor:
    """A race in a folder: what stands in race.json, and what is to be done next."""

    def __init__(self, race: Race, folder: Path, how: How, tell: Tell, bars: Any = None) -> None:
        self.race, self.folder, self.how, self.tell, self.bars = race, folder, how, tell, bars
        self.store = stores.Store(folder.resolve() / ".store")
        self.ready: dict[str, list[str]] = {}
        self.tuned: dict[str, dict[str, Any]] = {}
        self.dropped: dict[str, dict[str, Any]] = {}
        self.record: dict[str, Any] = {}

    # ---- tasks

    def place(self, arm: str, seed: int) -> Path:
        """The folder of a heat."""
        safe = "".join(c if c.isalnum() or c in "-_.@" else "-" for c in arm)
        unlike = "" if safe == arm else "-" + hashlib.blake2b(arm.encode(), digest_size=3).hexdigest()
        return self.folder.resolve() / "heats" / f"{safe}{unlike}" / f"seed-{seed}"

    def task(self, arm: Arm, seed: int, pause: float = 2.0, **other: Any) -> dict[str, Any]:
        """What a worker must know to run one heat."""
        valid = bool(other.get("valid_only"))
        changes = other.get("changes", self.tuned.get(arm.name, {}).get("best", {}))
        unit = self.race.budget[0] if self.race.budget else ""
        return {
            "arm": arm.name,
            "seed": seed,
            "folder": str(other.get("folder") or self.place(arm.name, seed)),
            "recipe": recipe_of(self.race, arm, seed, changes, valid),
            "store": str(self.store.root),
            "ready": self.ready,
            "budget": self.race.budget if unit in ("work", "seconds") else None,
            "watched": self.race.watched,
            "valid": self.race.spec.valid,
            "points": self.race.spec.points,
            "pause": pause,
            "threads": self.race.spec.threads,
        }

    # ---- the stages

    def share(self) -> dict[str, Any]:
        """Do once what is the same for all; give its bill. Every noun lies in the store afterwards, for any process."""
        from trainlore.execute import Heat, execute
        from trainlore.given import given

        spec = prepared(self.race)
        nouns = {k: given(k, source, spec["seed"]) for k, source in spec["given"].items()}
        bill = dict.fromkeys(("steps", "work", "tokens", "rows", "seconds"), 0.0)
        for name, noun in nouns.items():
            if not self.store.has(noun.key):
                self.store.put(noun.key, noun.get(), {"record": {}})
            self.ready[name] = [noun.key, _kind(spec["given"][name])]
        if spec["steps"]:
            folder = self.folder / "shared"
            heat = Heat(dict(nouns), self.store.root, alone=False)
            execute(recipes.read(spec), folder, resume=(folder / "run.json").exists(), heat=heat, tell=self.tell)
            record = json.loads((folder / "run.json").read_text())
            for step in record["steps"]:
                self.ready[step["as"]] = [step["key"], step["noun"]]
                for unit in bill:
                    bill[unit] += step.get(unit, 0)
        return bill

    def noun(self, name: str) -> Any:
        """One of the nouns that are there before any heat."""
        return heats.ready(str(self.store.root), {name: self.ready[name]})[name].get()

    def test_data(self) -> str:
        """The name of the rows the verdict is spoken on."""
        return next(iter(self.race.spec.test.values()))["data"].removeprefix("$")

    def heats(self, run: Any, arms: list[Arm], seeds: list[int], pause: float = 2.0, label: str = "race") -> None:
        """Run these arms with these seeds as far as `pause`; what is finished already is not run again."""
        todo = []
        for seed in seeds:  # seed by seed, so that a race broken off has whole seeds
            for arm in arms:
                folder = self.place(arm.name, seed)
                if heats.ended(folder) is None and rungs.reached(heats.track(folder)) < pause:
                    todo.append(self.task(arm, seed, pause))
        bar = self.bars.add_task(f"  {label}", total=len(todo), info="") if self.bars else None

        def done(task: dict[str, Any], found: dict[str, Any]) -> None:
            if found["state"] == heats.FAILED:
                folder = Path(task["folder"])
                if heats.ended(folder) is None:  # its process died and could not say so itself
                    stores.write(folder / "heat.json", json.dumps({**found, "track": heats.track(folder)}))
                self.tell(f"[red]{task['arm']}, seed {task['seed']}: lost: {esc(found['error'])}[/red]")
            elif found["state"] == heats.FINISHED and bar is None:
                self.tell(f"{task['arm']}, seed {task['seed']}: {found['score']:.5g} ({found['clock']:.1f} s)")
            if bar is not None:
                self.bars.update(bar, advance=1, info=task["arm"])

        try:
            run(todo, done)
        finally:
            if bar is not None:
                self.bars.remove_task(bar)

    # ---- telling

    def write(self, **more: Any) -> None:
        """race.json as it stands."""
        self.record |= more
        stores.write(self.folder / "race.json", json.dumps(self.record, indent=1, default=stores.jsonable))


def conduct(
    race: Race,
    folder: Path,
    how: How | None = None,
    *,
    force: bool = False,
    resume: bool = False,
    ask: Callable[[str], bool] = lambda text: True,
    tell: Tell = lambda text: None,
    bars: Any = None,
) -> dict[str, Any]:
    """Run the whole race and give what race.json holds. `ask` is shown the pilot's forecast and says whether to go on."""
    how = how or How()
    if race.spec.seeds < 2 and not how.exploratory:
        raise Bad("one seed cannot tell a method from luck: give more seeds, or --exploratory and no verdict")
    if (how.tune or how.halving) and not race.spec.valid:
        raise Bad("tuning and stopping early need `valid`: a measure on rows that the verdict never sees")
    if how.halving and not race.watched:
        raise Bad("stopping early needs one training that all arms run, and this race has none")
    jobs = how.jobs or max(1, (os.cpu_count() or 1) // race.spec.threads)
    made = Conductor(race, _folder(race, folder, force, resume), how, tell, bars)
    if resume:
        made.record = json.loads((folder / "race.json").read_text())
    start = time.perf_counter()
    from trainlore.execute.record import environment

    made.write(
        name=race.spec.name,
        question=race.spec.question,
        state="running",
        started=made.record.get("started") or time.time(),
        settings=dataclasses.asdict(how),
        budget=race.spec.budget,
        seeds=race.seeds,
        baseline=race.baseline,
        metric=race.metric,
        environment=environment(),
    )
    try:
        with workers(how.on, jobs) as run:
            shared = made.share()
            _look_at_rows(made)
            _stages(made, run, ask, jobs)
    except KeyboardInterrupt:
        made.write(state="interrupted")
        raise
    except Bad as error:
        made.write(state="refused", error=str(error))
        raise
    record = conclude(made, shared, time.perf_counter() - start)
    if not how.keep:
        shutil.rmtree(made.store.root, ignore_errors=True)
    return record


def _stages(made: Conductor, run: Any, ask: Callable[[str], bool], jobs: int) -> None:
    race, arms = made.race, list(made.race.arms.values())
    forecast = made.record.get("preflight") or preflight.pilot(made, run, jobs)
    made.write(preflight=forecast)
    preflight.refuse(forecast, made.folder)
    unfit = {n: a["error"] for n, a in forecast["arms"].items() if a.get("cannot")}
    if race.baseline in unfit:
        raise Bad(f"the baseline {race.baseline} cannot run: {unfit[race.baseline]}")
    arms = [a for a in arms if a.name not in unfit]
    if len(arms) < 2:
        raise Bad("nothing is left to race: " + "; ".join(f"{n}: {e}" for n, e in unfit.items()))
    made.write(unfit=unfit)
    if not ask(preflight.told(forecast, race)):
        raise Bad(f"not begun; the pilot is kept: trainlore resume {made.folder}")
    if made.how.tune:
        made.tuned = made.record.get("tuning") or tuning.tune(made, run, arms)
        made.write(tuning=made.tuned)
        for arm in made.tuned:
            for seed in race.seeds:
                folder = made.place(arm, seed)
                if (folder / "run.json").exists() and not _same(made, race.arms[arm], seed, folder):
                    shutil.rmtree(folder)  # the pilot's, with the values from before the search
    if made.how.halving:
        arms = rungs.halve(made, run, arms)
        made.write(dropped=made.dropped)
    made.heats(run, arms, race.seeds)


def _same(made: Conductor, arm: Arm, seed: int, folder: Path) -> bool:
    """Whether the heat in the folder is the one that would be run now."""
    old = json.loads((folder / "run.json").read_text())
    return old["recipe_hash"] == stores.hash_of(recipes.read(made.task(arm, seed)["recipe"]).text)


def _folder(race: Race, folder: Path, force: bool, resume: bool) -> Path:
    there = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if resume:
        if not (folder / "race.json").exists():
            raise Bad(f"{folder} is not a race: it has no race.json")
        return folder
    if there and not force:
        raise Bad(f"{folder} exists: choose another --out, `trainlore resume {folder}`, or --force to replace it")
    if there and not (folder / "race.json").exists():
        raise Bad(f"{folder} is not a race folder, so --force does not remove it: choose another --out")
    if there:
        shutil.rmtree(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Bad(f"cannot make {folder}: {error.strerror}") from None
    stores.write(folder / "race.yaml", race.text)
    return folder


def resume(folder: Path, **more: Any) -> dict[str, Any]:
    """Go on with a race: heats that ended are kept, a training goes on from its last checkpoint."""
    if not (folder / "race.json").exists():
        raise Bad(f"{folder} is not a race: it has no race.json")
    old = json.loads((folder / "race.json").read_text())
    return conduct(read(folder / "race.yaml"), folder, How(**old.get("settings", {})), resume=True, **more)


# ---- rows that must not be where they are


def _look_at_rows(made: Conductor) -> None:
    """Refuse test rows that are trained on, test labels that training never shows, and a test too small to separate."""
    name = made.test_data()
    if made.ready.get(name, ["", ""])[1] != "Data":
        return  # the test rows are made inside the heats
    test = made.noun(name)
    if not len(test):
        raise Bad(f"the test set ${name} has no rows")
    least = verdict.least_rows(max(1, len(made.race.arms) - 1), made.race.spec.level)
    if len(test) < least and not made.how.exploratory:
        raise Bad(
            f"the test set ${name} has {len(test)} rows: even if all of them spoke for one arm nothing could be separated; "
            f"it takes at least {least}, and some hundreds for differences of a few per cent"
        )
    used = recipes.refs(
        [*_learned(made.race.spec.prepare), *made.race.spec.then, *(a.steps for a in made.race.arms.values())]
    )
    used |= {n for a in made.race.arms.values() for n in a.use.values()}
    valid = {body["data"].removeprefix("$") for body in made.race.spec.valid.values()}
    found: dict[str, list[int]] = {}
    for other in sorted((used | valid) & set(made.ready)):
        if made.ready[other][1] != "Data" or other == name:
            continue
        data = made.noun(other)
        column = next((c for c in READ if c in data.columns and c in test.columns), None)
        if column is not None:
            both = np.flatnonzero(np.isin(contents(test, column), contents(data, column)))
            if len(both):
                found[other] = test.ids[both].tolist()
        if other in used:  # rows that only choose between values need not show every label
            _labels(data, other, test, name)
    if found and not made.how.allow_overlap:
        where, rows = max(found.items(), key=lambda f: len(f[1]))
        raise Bad(
            f"{len(rows)} of {len(test)} test rows stand in ${where} too (rows {', '.join(map(str, rows[:8]))}"
            f"{', ...' if len(rows) > 8 else ''}): take them out, or say --allow-overlap"
        )
    made.write(overlap={k: len(v) for k, v in found.items()}, test_rows=len(test))


def _learned(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps without the rows that are only cut or thinned out: what comes of those is looked at where it is used."""
    kind = lambda name: index()[name]["kind"] if name in index() else "train"
    return [
        {name: {k: v for k, v in (body or {}).items() if k != "data" or kind(name) != "Curate"}}
        for step in steps
        for name, body in step.items()
    ]


READ = (
    "text",
    "prompt",
    "messages",
    "features",
    "pixel_values",
    "input_ids",
)  # what a model sees, by which rows are the same


def contents(data: Any, column: str) -> np.ndarray:
    """One number a row (N,) int64 that is equal where the column is; letter case and white space do not count."""
    values = data[column]
    if isinstance(values, np.ndarray):
        flat = np.ascontiguousarray(values).reshape(len(values), -1)
        return np.fromiter((hash(row.tobytes()) for row in flat), np.int64, len(flat))
    if data.kinds.get(column) == "text":
        return np.fromiter((hash(" ".join(t.lower().split())) for t in data.text(column)), np.int64, len(data))
    return np.fromiter((hash(str(v)) for v in values.to_pylist()), np.int64, len(data))


def _labels(data: Any, name: str, test: Any, test_name: str) -> None:
    if "label" not in data.columns or "label" not in test.columns:
        return
    ours, theirs = np.asarray(data["label"]), np.asarray(test["label"])
    if ours.ndim != 1 or theirs.ndim != 1 or ours.dtype.kind == "f":
        return
    if lost := sorted(set(theirs.tolist()) - set(ours.tolist())):
        raise Bad(f"${test_name} has label {lost[0]!r}, which ${name} never shows: no arm could learn it")


# ---- the end


def conclude(made: Conductor, shared: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Gather every heat's outcomes, judge them, and write race.json, outcomes.parquet and the report."""
    race = made.race
    arms: dict[str, Any] = {}
    outcomes: dict[str, verdict.Outcomes] = {}
    for arm in race.arms.values():
        ended = {s: heats.ended(made.place(arm.name, s)) for s in race.seeds}
        good = {s: r for s, r in ended.items() if r is not None and r["state"] == heats.FINISHED}
        lost = {s: r["error"] for s, r in ended.items() if r is not None and r["state"] == heats.FAILED}
        arms[arm.name] = _arm_record(made, arm, good, lost)
        if good:
            outcomes[arm.name] = _outcomes(made, arm, good)
    if not outcomes:
        errors = "; ".join(f"{a}: {next(iter(v['lost'].values()))}" for a, v in arms.items() if v["lost"])
        made.write(state="failed", arms=arms, error=errors)
        raise Bad(f"no heat finished: {errors or 'none ran'}")
    metric = next(iter(arms[a]["metric"] for a in outcomes))
    effects = []
    judged = race.baseline in outcomes and not made.how.exploratory
    if judged:
        effects = verdict.judge(outcomes, race.baseline, race.spec.level)
        sentence = verdict.headline(effects, race.baseline, metric)
    elif made.how.exploratory:
        sentence = "Exploratory: no verdict is spoken."
    else:
        sentence = f"The baseline {race.baseline} finished no seed: no verdict."
    _save(made.folder / "outcomes.parquet", outcomes)
    made.write(
        state="finished",
        ended=time.time(),
        seconds=seconds,
        metric=metric,
        better=next(iter(outcomes.values())).better,
        verdict=sentence,
        effects=[dataclasses.asdict(e) | {"sentence": e.sentence} for e in effects],
        pairs=[dataclasses.asdict(e) for e in verdict.judge(outcomes, race.baseline, race.spec.level, "all")]
        if judged
        else [],
        arms=arms,
        shared=shared,
        orders=profiles.orders(arms),
        targets=profiles.targets(arms, race.baseline),
    )
    made.write(preflight=preflight.against_truth(made.record.get("preflight", {}), made.record))
    page.write(made.folder)
    return made.record


def _arm_record(made: Conductor, arm: Arm, good: dict[int, Any], lost: dict[int, str]) -> dict[str, Any]:
    def mean(unit: str) -> float:
        return float(np.mean([r["bill"][unit] for r in good.values()])) if good else 0.0

    first = next(iter(good.values()), None)
    return {
        "methods": arm.methods,
        "scores": {str(s): r["score"] for s, r in good.items()},
        "lost": {str(s): e for s, e in lost.items()},
        "bill": {u: mean(u) for u in ("steps", "work", "tokens", "rows", "seconds", "peak")},
        "clock": float(np.sum([r["clock"] for r in good.values()])) if good else 0.0,
        "search": made.tuned.get(arm.name, {}).get("bill"),
        "metric": first["metric"] if first else "",
        "better": first["better"] if first else "",
        "tracks": {str(s): r["track"]["points"] for s, r in good.items()},
        "did": first["did"] if first else [],
        "test_seconds": first["test_seconds"] if first else 0.0,
        "dropped": made.dropped.get(arm.name),
    }


def _outcomes(made: Conductor, arm: Arm, good: dict[int, Any]) -> verdict.Outcomes:
    values: list[np.ndarray] = []
    rows = weights = np.empty(0)
    for seed in good:
        ids, value, weight = heats.outcomes(made.place(arm.name, seed))
        if values and not np.array_equal(ids, rows):
            raise Bad(
                f"{arm.name} was tested on other rows with seed {seed} than before: the test must not be drawn by seed"
            )
        rows, weights = ids, weight
        values.append(value)
    first = next(iter(good.values()))
    return verdict.Outcomes(
        np.stack(values), tuple(good), rows, first["better"], weights if first["weighted"] else None
    )


def _save(path: Path, outcomes: dict[str, verdict.Outcomes]) -> None:
    """One tidy table: arm, seed, row, value, weight."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for arm, o in outcomes.items():
        n = len(o.rows)
        weight = o.weights if o.weights is not None else np.ones(n)
        for seed, values in zip(o.seeds, o.values, strict=True):
            columns = {"arm": [arm] * n, "seed": np.full(n, seed), "row": o.rows, "value": values, "weight": weight}
            tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path)
