"""What a race promises: that a method does not separate from itself, what stopping early costs, and what racing adds.

python benchmarks/races.py [same] [replayed] [overhead]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from trainlore.execute import Heat, execute
from trainlore.races import heat, rungs, spec, verdict
from trainlore.races.conduct import Conductor, How, conduct
from trainlore.recipe import read

PARTS: dict[str, list[Any]] = {
    "plain": [],
    "label smoothing": [{"label_smoothing": {"amount": 0.2}}],
    "mixup": ["mixup"],
    "weight averaging": [{"ema": {"decay": 0.9}}],
    "sharpness-aware": ["sam"],
    "cosine": ["cosine"],
    "clipped": [{"clip": {"norm": 0.5}}],
    "fresh subsets": [{"rs2": {"keep": 0.3}}],
}


def digits(arms: dict[str, Any], seeds: int, steps: int, **more: Any) -> spec.Race:
    """A quick race on a thousand digits, a fifth of them with a wrong label."""
    train = {"model": "$net", "data": "$noisy", "steps": steps, "lr": 1e-2, "batch_size": 32, "precision": "fp32"}
    return spec.read(
        {
            "name": "digits",
            "seeds": seeds,
            "given": {
                "noisy": "world:digits/noisy",
                "valid": {"data": "world:digits/test", "rows": 200},
                "test": {"data": "world:digits/test", "skip": 200},
                "net": {"model": "mlp", "width": 32},
            },
            "arms": arms,
            "then": [{"train": {**train, "as": "trained"}}],
            "test": {"accuracy": {"model": "$trained", "data": "$test"}},
            **more,
        }
    )


def same(races: int = 200, seeds: int = 4) -> None:
    """Races of a method against itself with other random numbers: how many separate at the 5 % level."""
    twin = {"seed_offset": 1_000_000, "with": []}
    made = digits({"plain": None, "again": twin}, races * seeds, 40)
    with tempfile.TemporaryDirectory() as folder:
        conduct(made, Path(folder) / "race", How(keep=False))
        table = pq.read_table(Path(folder) / "race" / "outcomes.parquet")
    arm, value = np.array(table["arm"].to_pylist()), table["value"].to_numpy()
    rows = table["row"].to_numpy()[: (table["row"].to_numpy() == table["row"][0].as_py()).argmin() or None]
    n = len(value) // (2 * races * seeds)
    values = {a: value[arm == a].reshape(races, seeds, n) for a in ("plain", "again")}
    found = 0
    for k in range(races):
        outcomes = {a: verdict.Outcomes(v[k], tuple(range(seeds)), rows[:n], "higher", None) for a, v in values.items()}
        (effect,) = verdict.judge(outcomes, "plain")
        found += effect.verdict != verdict.CANNOT
    error = 1.96 * (0.05 * 0.95 / races) ** 0.5
    said = "as promised" if found / races <= 0.05 + error else "TOO MANY"
    print(f"A against A: {found} of {races} races ({seeds} seeds, {n} rows each) separated: {found / races:.1%}, promised 5 % +- {error:.1%}: {said}")  # fmt: skip


def replayed(seeds: int = 24, draws: int = 400) -> None:
    """Whole races played again with stopping early: how often an arm that was dropped would have won, and what was said."""
    arms = {n: {"with": parts} for n, parts in PARTS.items()}
    made = digits(arms, seeds, 300, points=16, valid={"accuracy": {"model": "$trained", "data": "$valid"}})
    with tempfile.TemporaryDirectory() as folder:
        record = conduct(made, Path(folder) / "race", How(keep=False))
    rng, said, won, first, saved = np.random.default_rng(0), [], [], 0, []
    tracks, scores = ({n: a[k] for n, a in record["arms"].items()} for k in ("tracks", "scores"))
    for _ in range(draws):
        mine = [str(s) for s in rng.choice(seeds, 3, replace=False)]
        alive = [str(n) for n in rng.choice(list(arms), 5, replace=False)]
        end = {n: float(np.mean([scores[n][s] for s in mine])) for n in alive}
        best, spent = max(end, key=lambda n: end[n]), 0.0
        for at, rung in enumerate(rungs.RUNGS):
            spent += len(alive) * (rung - (rungs.RUNGS[at - 1] if at else 0.0))
            curves = {
                n: [[(p["done"], p["score"]) for p in tracks[n][s] if p["done"] <= rung + 0.02] for s in mine] for n in alive
            }  # fmt: skip
            stay, dropped = rungs.judged(curves, 1.0)
            for name, d in dropped.items():
                said.append(d["chance"])
                won.append(end[name] > end[d["leader"]])
            alive = [n for n in alive if n in stay]
        first += best in alive
        saved.append(1 - (spent + len(alive) * (1 - rungs.RUNGS[-1])) / 5)
    risk, truth = np.array(said), np.array(won, float)
    print(
        f"replayed races: {draws} draws of 5 of {len(arms)} arms and 3 of {seeds} seeds; {np.mean(saved):.0%} of the training saved"
    )
    print(
        f"  the arm that ends best was kept in {first / draws:.0%}; of {len(risk)} dropped arms {truth.mean():.0%} would have ended above the leader, said was {risk.mean():.0%}"
    )
    for low, high in ((0, 0.1), (0.1, 0.25), (0.25, 0.5), (0.5, 1.01)):
        if (inside := (risk >= low) & (risk < high)).any():
            print(
                f"  said {low:.0%} to {min(high, 1):.0%}: {inside.sum()} dropped, {truth[inside].mean():.0%} would have"
            )


def overhead(pairs: int = 12, steps: int = 80) -> None:
    """What a race costs beyond its trainings: heats against the same trainings run plainly, in pairs, and what is around them."""

    def made(seeds: int) -> spec.Race:
        return spec.read(
            {
                "name": "overhead",
                "seeds": seeds,
                "given": {
                    "pool": {"data": "world:two-domains/pool"},
                    "test": "world:two-domains/held_out",
                    "base": {"model": "llama-1m", "window": 128},
                },
                "prepare": [{"bpe": {"model": "$base", "corpus": "$pool", "vocab": 512, "as": "worded"}}],
                "arms": {"plain": None, "averaged": {"with": [{"ema": {"decay": 0.95}}]}},
                "then": [{"train": {"model": "$worded", "data": "$pool", "steps": steps, "batch_size": 16, "truncate": True, "as": "trained"}}],
                "test": {"held_out_loss": {"model": "$trained", "data": "$test"}},
            }
        )  # fmt: skip

    torch.set_num_threads(1)
    around = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            conduct(made(2), Path(folder) / "race", How(jobs=1))
            heats = sum(json.loads(f.read_text())["clock"] for f in Path(folder).rglob("heat.json"))
            around.append(time.perf_counter() - start - heats)
    race, ratios = made(pairs), []
    with tempfile.TemporaryDirectory() as folder:
        conductor = Conductor(race, Path(folder) / "race", How(jobs=1), lambda text: None)
        conductor.share()
        for k, seed in enumerate(race.seeds):
            arm = list(race.arms.values())[k % 2]
            task = conductor.task(arm, seed, pause=1e9)
            took = {}
            for which in ("race", "plain") if k // 2 % 2 else ("plain", "race"):
                start = time.perf_counter()
                if which == "race":
                    assert heat.run(task)["state"] == heat.FINISHED
                else:
                    execute(read(task["recipe"]), Path(folder) / f"plain-{seed}", heat=Heat(heat.ready(task["store"], task["ready"]), Path(folder) / "other"))  # fmt: skip
                took[which] = time.perf_counter() - start
            ratios.append(took["race"] / took["plain"])
    ratio, error = float(np.mean(ratios)), float(np.std(ratios, ddof=1) / pairs**0.5)
    first, later = around[0], float(np.median(around[1:]))
    print(f"overhead: a heat takes {ratio:.3f} +- {error:.3f} of the same training run plainly ({pairs} pairs of {np.median(took['plain']):.1f} s)")  # fmt: skip
    print(f"  around the heats of a race {first:.1f} s the first time in a process, {later:.1f} s later (imports, pilot, verdict, report): at most 3 % of trainings of {first / 0.03:.0f} and {later / 0.03:.0f} s")  # fmt: skip


if __name__ == "__main__":
    asked = sys.argv[1:] or ["same", "replayed", "overhead"]
    for name in asked:
        {"same": same, "replayed": replayed, "overhead": overhead}[name]()
