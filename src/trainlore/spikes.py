"""Losses and gradients that leap: seen, named, and passed over if that is wished."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainlore.errors import Bad
from trainlore.placement import gradients
from trainlore.trees import brought_back, set_aside

POLICIES = ("ignore", "stop", "roll_back")
WINDOW = 100  # steps that say what is usual
FIRST = 20  # steps before anything is called unusual
FAR = 6.0  # standard deviations above the mean
EVERY = 50  # steps between the states that can be gone back to
TRIES = 10  # returns to one state before it is given up
SHOWN = 16  # rows that a message names; the file names all


class Diverged(Bad):
    """The loss is no longer a number, or leapt; the message names the step and the rows."""


class Guard:
    """Watches the loss and the length of the gradient; on "roll_back" the training goes back and passes the batch over.

    A loss that is no number is always acted on. Unless the policy is "ignore" (then no gradient is measured either), a
    gradient that is none is too, and either that lies 6 standard deviations above the mean of the last 100 steps. The rows
    are kept in spikes.jsonl of the run's folder, all of the batch, the worst first.
    """

    def __init__(self, policy: str, folder: Path | None, label: str = "", team: Any = None) -> None:
        if policy not in POLICIES:
            raise Bad(f"spikes is {', '.join(POLICIES)}, not {policy!r}")
        self.policy, self.folder, self.label, self.team = policy, folder, label, team
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped: list[int] = []  # steps whose batch is passed over
        self.held: dict[str, Any] | None = None

    def unusual(self, loss: float, weights: list[nn.Parameter], overflowed: bool = False) -> str:
        """What is wrong with this step, in words; nothing if it is as usual. `overflowed`: its gradient says nothing."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.policy == "ignore" or overflowed:
            return ""
        norm = length(weights, self.team)
        if not math.isfinite(norm):
            return f"the gradient's length is {norm}"
        for what, value, before in (("loss", loss, self.losses), ("gradient's length", norm, self.norms)):
            if len(before) >= FIRST:
                mean = sum(before) / len(before)
                spread = (sum((v - mean) ** 2 for v in before) / len(before)) ** 0.5
                if value > mean + FAR * max(spread, 1e-3 * abs(mean)):
                    return f"the {what} leapt to {value:.4g}, from {mean:.4g} +- {spread:.2g} before"
        self.losses.append(loss)
        self.norms.append(norm)
        return ""

    def hold(self, t: int, state: Any) -> None:
        """Keep a copy of the state now and then, to go back to."""
        if self.policy == "roll_back" and t % EVERY == 0:
            tree = state()
            del tree["guard"]["held"]
            self.held = set_aside(tree)

    def act(self, t: int, why: str, rows: list[int], last: Callable[[], Path | None]) -> dict[str, Any]:
        """The state to go back to, with step t's batch to be passed over; its rows (ids, the worst first) are kept.

        Raises Diverged, which names the `last()` good checkpoint, where the policy is another or that was tried too often.
        """
        since = [k for k in self.skipped if self.held is not None and k >= self.held["t"]]
        back = self.policy == "roll_back" and self.held is not None and len(since) < TRIES
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            line = {
                "step": self.label,
                "t": t + 1,
                "why": why,
                "then": "passed over" if back else "stopped",
                "rows": rows,
            }
            with (self.folder / "spikes.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        if back:
            self.skipped.append(t)
            return brought_back(self.held)  # type: ignore[no-any-return]
        named = ", ".join(map(str, rows[:SHOWN])) + (f" and {len(rows) - SHOWN:,} more" * (len(rows) > SHOWN))
        tried = f"{len(since)} batches were passed over before; " * (self.policy == "roll_back")
        good = f"the last good weights are in {path}; " if (path := last()) else ""
        raise Diverged(
            f"{why} at step {t + 1}, on rows [{named}]; {tried}{good}lower `lr`, add `clip`, or look at those rows"
        )

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        found = {"losses": list(self.losses), "norms": list(self.norms), "skipped": list(self.skipped)}
        return {**found, "held": self.held}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there; what was passed over since stays passed over."""
        self.losses, self.norms = deque(state["losses"], maxlen=WINDOW), deque(state["norms"], maxlen=WINDOW)
        self.skipped = sorted({*self.skipped, *state["skipped"]})
        self.held = state.get("held", self.held)


@torch.no_grad()
def length(weights: list[nn.Parameter], team: Any = None) -> float:
    """The length of all gradients together; of weights that are shared out, over all processes."""
    shared = [hasattr(p.grad, "_local_tensor") for p in weights if p.grad is not None]
    norms = [n.float() for n in torch._foreach_norm(gradients(weights))] if shared else []
    whole = [n for n, apart in zip(norms, shared, strict=True) if not apart]
    norm = float(torch.stack(whole).norm()) if whole else 0.0
    if not any(shared):
        return norm
    mine = float(torch.stack([n for n, apart in zip(norms, shared, strict=True) if apart]).norm())
    return math.hypot(norm, math.sqrt(team.sums(mine**2)[0]))
