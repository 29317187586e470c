"""What a race will cost and what it can find, said before it costs anything, and held against the truth afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlore import needs
from trainlore import recipe as recipes
from trainlore.errors import Bad
from trainlore.primitives.statistics import smallest
from trainlore.races import heat as heats
from trainlore.races.spec import recipe_of

if TYPE_CHECKING:
    from trainlore.races.conduct import Conductor
    from trainlore.races.spec import Race

SHARE = 0.04  # of the training that the pilot runs; the race goes on from there, so that it costs nothing


def pilot(made: Conductor, run: Any, jobs: int) -> dict[str, Any]:
    """Begin the first seed of every arm, and the second of the baseline; forecast the rest from it.

    Where arms have no training in common that could be paused, their first heats are run whole.
    """
    race = made.race
    asked = needed(made)
    needs.held_against(asked, jobs)
    base = race.arms[race.baseline]
    made.heats(run, list(race.arms.values()), race.seeds[:1], SHARE, "pilot")
    made.heats(run, [base], race.seeds[1:2], SHARE, "pilot")
    arms = {name: _arm(made, name) for name in race.arms}
    known = [a for a in arms.values() if a["seconds"] is not None]
    begun = len(race.arms) + 1
    return {
        "arms": arms,
        "seconds": sum(a["seconds"] for a in known) * len(race.seeds) / jobs if known else None,
        "work": sum(a["work"] for a in known) * len(race.seeds) if known else None,
        "jobs": jobs,
        "peak": max((a["peak"] for a in known), default=0) * jobs,
        "memory": _memory(),
        "needs": [str(n) for n in asked],
        "disk": _size(made.folder / "heats") / begun * len(race.arms) * len(race.seeds) + _size(made.store.root),
        "free": shutil.disk_usage(made.folder).free,
        "detectable": _detectable(made),
        "share": SHARE,
    }


def needed(made: Conductor) -> list[needs.Need]:
    """What steps of the arms say they need, the largest of each method first: known before any of them runs."""
    found: dict[str, needs.Need] = {}
    for arm in made.race.arms.values():
        steps = recipes.read(recipe_of(made.race, arm, made.race.seeds[0])).steps
        for need in needs.of_steps(steps, lambda name: made.noun(name) if name in made.ready else None):
            if need.name not in found or found[need.name].bytes < need.bytes:
                found[need.name] = need
    return sorted(found.values(), key=lambda need: -need.bytes)


def _arm(made: Conductor, name: str) -> dict[str, Any]:
    """Seconds, work and memory of one heat of the arm, from its first one as far as it got."""
    folder = made.place(name, made.race.seeds[0])
    ended = heats.ended(folder)
    if ended is not None and ended["state"] == heats.FAILED:
        return {"seconds": None, "work": None, "peak": 0, "error": ended["error"], "cannot": ended.get("cannot", False)}
    if ended is not None:
        bill = ended["bill"]
        return {"seconds": bill["seconds"] + ended["test_seconds"], "work": bill["work"], "peak": bill["peak"]}
    bill, seen = heats._bill(folder)["bill"], heats.track(folder)
    if not seen["at"]:
        return {"seconds": None, "work": None, "peak": 0, "error": "the pilot did not reach the training"}
    last = seen["at"]
    start, share = seen["warm"] or (0.0, 0.0)
    rate = (
        (last["seconds"] - start) / (last["done"] - share) if last["done"] > share else last["seconds"] / last["done"]
    )
    seconds = bill["seconds"] + rate
    looks = seen["looked"] / (len(seen["points"]) + 1) * (made.race.spec.points + 2)
    return {"seconds": seconds + looks, "work": bill["work"] + last["work"] / last["done"], "peak": _peak(folder, bill)}


def _peak(folder: Path, bill: dict[str, Any]) -> float:
    """The largest memory the process has said so far; the training that was paused has not said its own yet."""
    import json

    record = json.loads((folder / "run.json").read_text())
    return max(bill["peak"], record.get("meter", {}).get("peak", 0))


def _detectable(made: Conductor) -> float | None:
    """The difference that the race finds four times in five, from how the pilot's answers differ between arms and seeds."""
    race = made.race
    first = {n: heats.track(made.place(n, race.seeds[0])).get("values") for n in race.arms}
    base = first.get(race.baseline)
    others = [
        np.subtract(v, base) for n, v in first.items() if n != race.baseline and v and base and len(v) == len(base)
    ]
    again = heats.track(made.place(race.baseline, race.seeds[1])).get("values") if len(race.seeds) > 1 else None
    if not others or not again or not base:
        return None
    rows = made.record.get("test_rows") or len(base)
    by_row = float(np.median([d.var(ddof=1) for d in others])) / rows
    by_seed = float(np.subtract(base, again).mean() ** 2) / len(race.seeds)
    stderr = (by_row + by_seed) ** 0.5
    return (
        smallest(stderr, max(1, len(race.seeds) - 1), race.spec.level / max(1, len(race.arms) - 1)) if stderr else None
    )


def _memory() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def refuse(forecast: dict[str, Any], folder: Path) -> None:
    """Raise Bad where the race cannot fit."""
    jobs = forecast["jobs"]
    if forecast["peak"] > 0.95 * forecast["memory"]:
        raise Bad(
            f"{jobs} heats at a time need about {forecast['peak'] / 2**30:.1f} GiB and the machine has {forecast['memory'] / 2**30:.1f}: "
            f"say --jobs {max(1, int(0.95 * jobs * forecast['memory'] / forecast['peak']))}, or use a smaller model or batch"
        )
    if forecast["disk"] > forecast["free"]:
        raise Bad(
            f"the race needs about {forecast['disk'] / 2**30:.1f} GiB in {folder} and {forecast['free'] / 2**30:.1f} GiB are free: say --out"
        )
    if all(a["seconds"] is None for a in forecast["arms"].values()):
        errors = "; ".join(f"{n}: {a['error']}" for n, a in forecast["arms"].items())
        raise Bad(f"no arm can run: {errors}")


def told(forecast: dict[str, Any], race: Race) -> str:
    """The forecast in a few lines."""
    from trainlore.page.pieces import big

    lines = [f"{len(race.arms)} arms x {len(race.seeds)} seeds, {forecast['jobs']} at a time"]
    if forecast["seconds"] is not None:
        lines.append(
            f"about {_clock(forecast['seconds'])}, {big(forecast['work'], 'FLOP')}, {big(forecast['peak'], 'B')} of memory, {big(forecast['disk'], 'B')} on disk"
        )
    if forecast["detectable"] is not None:
        lines.append(
            f"finds differences from about {forecast['detectable']:.3g} on (power 80 %, from {forecast['share']:.0%} of the training)"
        )
    lines += forecast.get("needs", [])
    lines += [f"{n} will not run: {a['error']}" for n, a in forecast["arms"].items() if a.get("error")]
    return "\n".join(lines)


def _clock(seconds: float) -> str:
    return (
        f"{seconds / 3600:.1f} h"
        if seconds > 5400
        else f"{seconds / 60:.1f} min"
        if seconds > 90
        else f"{seconds:.0f} s"
    )


def against_truth(forecast: dict[str, Any], record: dict[str, Any]) -> dict[str, Any]:
    """The forecast with what came of it beside each number."""
    if not forecast:
        return forecast
    arms = record["arms"].values()
    ran = sum(len(a["scores"]) for a in arms)
    found = [e["detectable"] for e in record["effects"]]
    truth = {
        "seconds": sum(a["clock"] for a in arms) / forecast["jobs"],
        "work": sum(a["bill"]["work"] * len(a["scores"]) for a in arms),
        "peak": max((a["bill"]["peak"] for a in arms), default=0) * forecast["jobs"],
        "detectable": float(np.median(found)) if found else None,
        "heats": ran,
    }
    return {**forecast, "truth": truth}
