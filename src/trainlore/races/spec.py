"""What a race is: arms that differ in one thing, everything else equal. Wrong ones fail here, all errors at once, unrun."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import msgspec

from trainlore import recipe as recipes
from trainlore.errors import Bad
from trainlore.registry import index, near
from trainlore.sources import noun_of
from trainlore.units import amount

UNITS = ("tokens", "work", "rows", "steps", "seconds", "epochs")
WHOLE = ("work", "seconds")  # a budget of the whole arm: its training gets what its other steps left


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it is written."""

    arms: dict[str, Any]
    test: dict[str, dict[str, Any]]
    name: str = "race"
    question: str = ""
    seeds: int = 5
    first_seed: int = 0
    level: float = 0.05
    budget: str = ""
    baseline: str = ""
    given: dict[str, Any] = {}
    prepare: list[dict[str, Any]] = []
    then: list[dict[str, Any]] = []
    valid: dict[str, dict[str, Any]] = {}
    tune: dict[str, list[Any]] = {}
    points: int = 8
    threads: int = 1


class Arm(msgspec.Struct, frozen=True):
    """One way of doing it: its own steps, parts for the training that follows, and other names for nouns."""

    name: str
    steps: list[dict[str, Any]] = []
    parts: list[Any] = []
    use: dict[str, str] = {}
    tune: dict[str, list[Any]] = {}
    seed_offset: int = 0  # for a race of a method against itself, which must not see its own random numbers

    @property
    def methods(self) -> list[str]:
        """The methods that this arm brings in."""
        said = [next(iter(s)) for s in self.steps] + [p if isinstance(p, str) else next(iter(p)) for p in self.parts]
        return [m for m in said if m in index()]


class Race(msgspec.Struct, frozen=True):
    """A checked race, ready to be run."""

    spec: Spec
    arms: dict[str, Arm]
    baseline: str
    budget: tuple[str, float] | None
    metric: str  # the name of the measure
    watched: str  # the training that curves are of, by what it gives; "" where there is none
    text: str

    @property
    def seeds(self) -> list[int]:
        """The seeds of the race."""
        return list(range(self.spec.first_seed, self.spec.first_seed + self.spec.seeds))


def read(source: str | Path | dict[str, Any], overrides: list[str] | None = None) -> Race:
    """Read a race file (or mapping), apply overrides such as `seeds=3` or `given.pool=my.jsonl`, and check it whole."""
    return check(*recipes.parsed(source, Spec, "race", overrides, _override))


def _override(raw: Any, text: str) -> None:
    import yaml

    path, mark, value = text.partition("=")
    *keys, last = path.split(".")
    here = raw
    for key in keys:
        if not isinstance(here, dict) or key not in here:
            raise Bad(f"cannot set {text!r}: there is no {key!r}" + near(key, here if isinstance(here, dict) else ()))
        here = here[key]
    if not mark or not isinstance(here, dict):
        raise Bad(f"cannot set {text!r}: write seeds=3, budget=1M-tokens or given.pool=my.jsonl")
    here[last] = yaml.safe_load(value)


def check(spec: Spec, text: str) -> Race:
    """Plan the race: every arm becomes a recipe and is checked as one. Raises Bad with every error."""
    wrong: list[str] = []
    if len(spec.arms) < 2:
        wrong.append("a race needs two arms or more")
    arms: dict[str, Arm] = {}
    for name, body in spec.arms.items():
        try:
            arms[name] = _arm(str(name), body)
        except Bad as error:
            wrong.append(f"arm {name}: {error}")
    if spec.seeds < 1:
        wrong.append(f"seeds must be at least 1, not {spec.seeds}")
    if not 0 < spec.level < 1:
        wrong.append(f"level must be between 0 and 1, not {spec.level}")
    baseline = spec.baseline or next(iter(spec.arms), "")
    if baseline not in spec.arms:
        wrong.append(
            f"the baseline {baseline!r} is no arm" + (near(baseline, spec.arms) or f"; arms are {', '.join(spec.arms)}")
        )
    budget = None
    try:
        budget = budget_of(spec.budget) if spec.budget else None
    except Bad as error:
        wrong.append(str(error))
    wrong += _measures(spec)
    if not wrong:
        draft = Race(spec, arms, baseline, budget, next(iter(spec.test)), _watched(spec, arms), text)
        seen: set[str] = set()
        for arm in arms.values():
            try:
                recipes.read(recipe_of(draft, arm, 0))
            except Bad as error:
                for line in str(error).split("\n  - "):
                    if "errors:" not in line and line not in seen:
                        seen.add(line)
                        wrong.append(f"arm {arm.name}: {line}")
    if wrong:
        raise Bad(wrong[0] if len(wrong) == 1 else f"{len(wrong)} errors:\n" + "\n".join(f"  - {w}" for w in wrong))
    return draft


def _measures(spec: Spec) -> list[str]:
    wrong = []
    for where, asked in (("test", spec.test), ("valid", spec.valid)):
        if not asked and where == "valid":
            continue
        if len(asked) != 1:
            wrong.append(f"{where} is one measure with its model and data")
            continue
        name = next(iter(asked))
        measures = [n for n, e in index().items() if e["kind"] == "Measure"]
        if name not in measures:
            wrong.append(
                f"{where}: no metric {name!r}"
                + (near(name, measures) or f"; metrics are {', '.join(sorted(measures))}")
            )
    return wrong


def budget_of(text: str) -> tuple[str, float]:
    """("tokens", 2e6) of "2M-tokens": an amount and what it is counted in."""
    found = re.fullmatch(r"\s*([\d.,_e+-]*\d[\d.,_]*\s*[kKMBGT]?)[\s-]+([a-z]+)\s*", text)
    unit = found[2] if found else ""
    unit = (
        unit
        if unit in UNITS
        else f"{unit}s"
        if f"{unit}s" in UNITS
        else {"flop": "work", "flops": "work"}.get(unit, "")
    )
    if not found or not unit:
        raise Bad(f"budget {text!r}: say an amount and its unit, such as 2M-tokens; units are {', '.join(UNITS)}")
    value = amount(found[1].strip())
    if value <= 0:
        raise Bad(f"budget {text!r} must be above 0")
    return unit, value


def _arm(name: str, body: Any) -> Arm:
    """An arm as people write it: nothing, a list of steps, one method, or a mapping of steps, with, use, tune."""
    if not re.fullmatch(r"[^/\\$]{1,60}", name):
        raise Bad("a name has no slash and no $, and at most 60 letters")
    if body is None or body == []:
        return Arm(name)
    if isinstance(body, list):
        return Arm(name, steps=body)
    if not isinstance(body, dict):
        raise Bad(f"say steps: [...], with: [...] or one method with its fields, not {body!r}")
    own = {"steps", "with", "use", "tune", "seed_offset"}
    if not set(body) & own:
        if len(body) == 1 and not isinstance(next(iter(body.values())), dict | type(None)):
            raise Bad(f"say {next(iter(body))}: {{field: value}}, not {next(iter(body.values()))!r}")
        return Arm(name, steps=[body])
    if lost := set(body) - own:
        raise Bad(
            f"no key {sorted(lost)[0]!r}" + (near(sorted(lost)[0], own) or f"; an arm has {', '.join(sorted(own))}")
        )
    return Arm(
        name,
        body.get("steps") or [],
        body.get("with") or [],
        {k: str(v).removeprefix("$") for k, v in (body.get("use") or {}).items()},
        body.get("tune") or {},
        int(body.get("seed_offset") or 0),
    )


def _watched(spec: Spec, arms: dict[str, Arm]) -> str:
    """The last training that every arm runs, by what it gives: its curves can be compared."""
    last = next((s for s in reversed(spec.then) if next(iter(s)) == "train"), None)
    if last is not None:
        return str((last["train"] or {}).get("as") or "train")
    gave = set()
    for arm in arms.values():
        body = next((s["train"] for s in reversed(arm.steps) if next(iter(s)) == "train"), None)
        gave.add(str((body or {}).get("as") or "train") if body is not None else "")
    return gave.pop() if len(gave) == 1 else ""


def prepared(race: Race) -> dict[str, Any]:
    """The recipe of what is the same for every arm and seed: data from outside, and the steps under `prepare`."""
    data = {k: v for k, v in race.spec.given.items() if _kind(v) == "Data" or k in _asked(race.spec.prepare)}
    steps = race.spec.prepare
    return {"name": f"{race.spec.name}: shared", "seed": race.spec.first_seed, "given": data, "steps": steps}


def ready_names(race: Race) -> dict[str, str]:
    """Names and kinds of the nouns that are there before any arm starts."""
    made = {k: _kind(v) for k, v in prepared(race)["given"].items()}
    if race.spec.prepare:
        for step in recipes.plan(msgspec.convert(prepared(race), recipes.Spec)):
            made[step.gives] = recipes.GIVES.get(step.kind, "?")
    return made


def _kind(source: Any) -> str:
    try:
        return noun_of(source)
    except Bad:
        return "?"


def _asked(steps: Any) -> set[str]:
    return recipes.refs(steps)


def recipe_of(
    race: Race, arm: Arm, seed: int, changes: dict[str, Any] | None = None, valid: bool = False
) -> dict[str, Any]:
    """One arm with one seed as a recipe: its steps, what follows for all, and the test (or the validation) at the end.

    `changes`: values of tuned fields by "method.field" ("train.lr" speaks of the training that follows).
    """
    changes = changes or {}
    steps = copy.deepcopy([*arm.steps, *race.spec.then])
    asked = copy.deepcopy(race.spec.valid if valid else race.spec.test)
    steps.append({k: {**(v or {}), "as": "verdict"} for k, v in asked.items()})
    parts = copy.deepcopy(arm.parts)
    trains = [s["train"] for s in steps if "train" in s]
    if parts:
        if not trains:
            raise Bad("the arm has parts, and there is no training for them")
        trains[-1]["with"] = [*(trains[-1].get("with") or []), *parts]
    if race.budget is not None:
        _fund(race, steps, trains)
    for key, value in changes.items():
        _change(steps, key, value)
    given = dict(race.spec.given)
    for name, kind in (ready_names(race) if race.spec.prepare else {}).items():
        given.setdefault(name, {kind.lower(): "prepared"})
    used = _asked(steps)
    for other in arm.use:
        used |= {arm.use[other]}
    made = {str((b or {}).get("as") or n) for s in steps for n, b in s.items()}
    recipe = {
        "name": f"{race.spec.name}: {arm.name}",
        "seed": seed + arm.seed_offset,
        "given": {k: v for k, v in given.items() if k in used},
        "steps": _renamed(steps, {f"${k}": f"${v}" for k, v in arm.use.items() if k not in made}),
    }
    return recipe


def _fund(race: Race, steps: list[dict[str, Any]], trains: list[dict[str, Any]]) -> None:
    """Give the race's budget to the last training that has none of its own, or to a method that can be told one."""
    unit, value = race.budget  # type: ignore[misc]
    for body in reversed(trains):
        if not set(body) & set(recipes.BUDGETS):
            body[unit] = "rest" if unit in WHOLE else value if unit == "epochs" else int(value)
            return
    for step in reversed(steps):
        ((name, body),) = step.items()
        has = index()[name]["fields"] if name in index() and index()[name]["kind"] == "Fit" else {}
        if unit in has and unit not in (body or {}):
            step[name] = {**(body or {}), unit: value if "float" in has[unit]["type"] else int(value)}
            return


def _change(steps: list[dict[str, Any]], key: str, value: Any) -> None:
    method, _, name = key.rpartition(".")
    for step in reversed(steps):
        ((said, body),) = step.items()
        if said == method:
            step[said] = {**(body or {}), name: value}
            return
        parts = (body or {}).get("with") or []
        for at, part in enumerate(parts):
            if part == method or (isinstance(part, dict) and method in part):
                parts[at] = {method: {**((part[method] or {}) if isinstance(part, dict) else {}), name: value}}
                return
    raise Bad(f"cannot tune {key}: the arm has no {method!r}")


def _renamed(value: Any, names: dict[str, str]) -> Any:
    """The steps with nouns under other names, where an arm uses one that is there in the place of one it does not make."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, dict):
        return {k: _renamed(v, names) for k, v in value.items()}
    return [_renamed(v, names) for v in value] if isinstance(value, list) else value
