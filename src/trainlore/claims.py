"""Claims: does what the paper says move, move here, against the trivial rival? Measured over paired seeds."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainlore.runs import Run
from trainlore.worlds import tiny

REPRODUCED, NOT, CONTRADICTED, UNTRIED = "reproduced", "not reproduced here", "contradicted", "untried"


@dataclass(frozen=True)
class Outcome:
    """Paired differences (method - rival, (seeds,)) and what they amount to."""

    differences: tuple[float, ...]
    rival: float
    method: float
    better: str
    p: float
    low: float
    high: float
    work: dict[str, float] = field(default_factory=dict)

    @property
    def gain(self) -> float:
        """Mean improvement over the rival in the quantity's own unit, positive when better."""
        return float(np.mean(self.differences)) * (1 if self.better == "higher" else -1)

    @property
    def verdict(self) -> str:
        """reproduced, contradicted (both at p < 0.05), or not reproduced here."""
        if self.p >= 0.05 or self.gain == 0:
            return NOT
        return REPRODUCED if self.gain > 0 else CONTRADICTED


@dataclass(frozen=True)
class Claim:
    """The quantity a method says it moves, on a world, against its rival.

    `measure(seed, arm)` gives the quantity for arm "method" or "rival", everything else equal. `quick` seeds run in every
    test run, `seeds` under `make evidence`. `least` is the smallest mean gain that the quick run must show.
    """

    method: str
    world: str
    rival: str
    quantity: str
    better: str
    measure: Callable[[int, str], float]
    seeds: int = 10
    quick: int = 3
    least: float = 0.0

    def run(self, seeds: int, sabotaged: bool = False, first: int = 0) -> Outcome:
        """Measure both arms on this many seeds. Sabotaged, the rival stands in the method's place."""
        from trainlore.meter import Meter
        from trainlore.primitives.statistics import bootstrap_interval, sign_flip

        if self.world in tiny.NAMES:
            tiny.world(self.world)  # what the world itself trains is nobody's bill
        found: dict[str, list[float]] = {"method": [], "rival": []}
        work = {}
        for arm, values in found.items():
            with Meter().running() as bill:
                for seed in range(first, first + seeds):
                    values.append(float(self.measure(seed, "rival" if sabotaged else arm)))
            work[arm] = bill.work / max(1, seeds)
        difference = np.array(found["method"]) - np.array(found["rival"])
        generator = Run(0).numpy("claim", self.method)
        low, high = (
            bootstrap_interval(difference, generator) if seeds > 1 else (float(difference[0]), float(difference[0]))
        )
        p = float(sign_flip(difference, generator)) if difference.any() else 1.0
        return Outcome(
            tuple(difference.tolist()),
            float(np.mean(found["rival"])),
            float(np.mean(found["method"])),
            self.better,
            p,
            float(low),
            float(high),
            work,
        )

    def holds(self, sabotaged: bool = False) -> bool:
        """Whether the quick seeds show a mean gain above `least`: the check of every test run."""
        return self.run(self.quick, sabotaged).gain > self.least

    def row(self, outcome: Outcome, source: str) -> dict[str, Any]:
        """The line for results/: everything needed to read the number later. `source`: hash of the method's file."""
        return {
            "method": self.method,
            "world": self.world,
            "rival": self.rival,
            "quantity": self.quantity,
            "better": self.better,
            "n": len(outcome.differences),
            "mean_rival": outcome.rival,
            "mean_method": outcome.method,
            "difference": float(np.mean(outcome.differences)),
            "interval": [outcome.low, outcome.high],
            "p": outcome.p,
            "verdict": outcome.verdict,
            "work": outcome.work,
            "differences": list(outcome.differences),
            "commit": commit(),
            "source": source,
        }


def commit() -> str:
    """The short commit of the tree we run in, "-" outside one."""
    try:
        return (
            subprocess.run(
                ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
                capture_output=True,
                text=True,
                timeout=5,
            ).stdout.strip()
            or "-"
        )
    except (OSError, subprocess.TimeoutExpired):
        return "-"
