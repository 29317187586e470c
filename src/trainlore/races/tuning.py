"""Equal tuning: every arm gets the same number of trials over its declared ranges, on rows the verdict never sees."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlore.errors import Bad
from trainlore.races import heat as heats
from trainlore.registry import entry

if TYPE_CHECKING:
    from trainlore.races.conduct import Conductor
    from trainlore.races.spec import Arm, Race

SEED = 1_000_003  # of all trials: no seed of a verdict
PRUNED_AT = 0.34  # share of the training at which a hopeless trial is given up


def space(race: Race, arm: Arm) -> dict[str, tuple[Any, ...]]:
    """The ranges an arm is tuned over, by "method.field": (low, high), (low, high, "log") or a list of choices.

    What the race says for every arm, what the arm says, and what its methods declare; the nearer one counts.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for method in arm.methods:
        for field, range_ in (entry(method).get("ranges") or {}).items():
            found[f"{method}.{field}"] = tuple(range_)
    trains = any("train" in s for s in [*arm.steps, *race.spec.then])
    for said in (race.spec.tune, arm.tune):
        for key, range_ in said.items():
            method, _, field = key.rpartition(".")
            if (method == "train" and trains) or method in arm.methods:
                if method != "train" and field not in entry(method)["fields"]:
                    raise Bad(f"cannot tune {key}: {method} has no field {field!r}")
                found[key] = tuple(range_)
    return found


def suggest(trial: Any, key: str, range_: tuple[Any, ...]) -> Any:
    """One value of a field, drawn by the trial."""
    numbers = [v for v in range_ if isinstance(v, int | float) and not isinstance(v, bool)]
    log = range_[-1] == "log"
    if len(range_) == 2 + log and len(numbers) == 2:
        low, high = range_[:2]
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(key, low, high, log=log)
        return trial.suggest_float(key, float(low), float(high), log=log)
    return trial.suggest_categorical(key, list(range_))


def tune(made: Conductor, run: Any, arms: list[Arm]) -> dict[str, dict[str, Any]]:
    """The best values of every arm after `how.tune` trials each, and what the search cost. The first trial has the values
    that stand in the race, so that no arm is tuned to worse than it came."""
    try:
        import optuna
    except ImportError:
        raise Bad("--tune needs Optuna: pip install 'trainlore[race]'") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    race = made.race
    found: dict[str, dict[str, Any]] = {}
    studies: dict[str, Any] = {}
    for number, arm in enumerate(arms):
        ranges = space(race, arm)
        found[arm.name] = {
            "ranges": {k: list(v) for k, v in ranges.items()},
            "best": {},
            "trials": [],
            "bill": {},
        }
        if ranges:
            sampler = optuna.samplers.TPESampler(seed=SEED + number, n_startup_trials=max(2, made.how.tune // 3))
            pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
            studies[arm.name] = optuna.create_study(sampler=sampler, pruner=pruner)
    for k in range(made.how.tune):
        trials = {name: study.ask() for name, study in studies.items()}
        changes = {
            name: {key: suggest(trial, key, tuple(r)) for key, r in found[name]["ranges"].items()} if k else {}
            for name, trial in trials.items()
        }
        ended = _round(made, run, k, trials, changes)
        for name, (state, score, bill) in ended.items():
            found[name]["trials"].append({"values": changes[name], "state": state, "score": score})
            found[name]["bill"] = {u: found[name]["bill"].get(u, 0.0) + v for u, v in bill.items()}
            good = score is not None and state == heats.FINISHED
            if k:  # the values as they stand are no point of the space that the sampler knows
                cost = _cost(made, score) if good else None
                kind = (
                    optuna.trial.TrialState.COMPLETE
                    if good
                    else optuna.trial.TrialState.PRUNED
                    if score is not None
                    else optuna.trial.TrialState.FAIL
                )
                studies[name].tell(trials[name], cost, state=kind)
            else:
                studies[name].tell(trials[name], state=optuna.trial.TrialState.FAIL)
    for mine in found.values():
        done = [t for t in mine["trials"] if t["state"] == heats.FINISHED]
        if done:
            mine["best"] = min(done, key=lambda t: _cost(made, t["score"]))["values"]
    shutil.rmtree(made.folder / "trials", ignore_errors=True)
    return found


def _cost(made: Conductor, score: float) -> float:
    return -score if made.record.get("valid_better") == "higher" else score


def _round(made: Conductor, run: Any, k: int, trials: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """One trial of every arm: to the first rung, where Optuna's pruner may end it, then to its end."""
    race, out = made.race, {}
    folder = lambda name: made.folder.resolve() / "trials" / made.place(name, k).parent.name / f"trial-{k}"

    def task(name: str, pause: float) -> dict[str, Any]:
        return made.task(race.arms[name], SEED, pause, folder=folder(name), changes=changes[name], valid_only=True)

    def done(task: dict[str, Any], result: dict[str, Any]) -> None:
        out[task["arm"]] = result
        better = result.get("better") or result.get("track", {}).get("better")
        if better:
            made.record["valid_better"] = better

    alive = list(trials)
    if race.watched and k:
        run([task(n, PRUNED_AT) for n in alive], done)
        for name in list(alive):
            seen = heats.track(Path(folder(name)))["at"]
            if out[name]["state"] == heats.PAUSED and seen:
                trials[name].report(_cost(made, seen["score"]), step=1)
                if trials[name].should_prune():
                    alive.remove(name)
    run([task(n, 2.0) for n in alive], done)
    found = {}
    for name, result in out.items():
        score = result.get("score")
        seen = result.get("track", {}).get("at")
        if score is None and seen:
            score = seen["score"]
        state = "pruned" if name not in alive else result["state"]
        bill = dict(result.get("bill", {}))
        if state == "pruned" and seen:
            bill["work"] = bill.get("work", 0.0) + seen["work"]
        found[name] = (state, score, {u: bill.get(u, 0.0) for u in ("work", "seconds")})
    made.write()
    return found
