"""Losses and gradients that leap: seen, named, and passed over if that is wished."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import torch
from torch import nn

from trainlore.errors import Bad
from trainlore.store import copied

POLICIES = ("ignore", "stop", "roll_back")
WINDOW = 100  # steps that say what is usual
FIRST = 20  # steps before anything is called unusual
FAR = 6.0  # standard deviations above the mean
EVERY = 50  # steps between the states that can be gone back to
TRIES = 10  # returns before it is given up


class Diverged(Bad):
    """The loss is no longer a number, or leapt; the message names the step and the rows."""


class Guard:
    """Watches the loss and the length of the gradient; on "roll_back" the training goes back and passes the batch over.

    A loss or a gradient that is no number is always acted on. One that lies 6 standard deviations above the mean of the
    last 100 steps is, unless the policy is "ignore" (then no gradient is measured either).
    """

    def __init__(self, policy: str, folder: Path | None) -> None:
        if policy not in POLICIES:
            raise Bad(f"spikes is {', '.join(POLICIES)}, not {policy!r}")
        self.policy, self.folder = policy, folder
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.skipped: list[int] = []  # steps whose batch is passed over
        self.held: dict[str, Any] | None = None

    @torch.no_grad()
    def unusual(self, loss: float, weights: list[nn.Parameter]) -> str:
        """What is wrong with this step, in words; nothing if it is as usual."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.policy == "ignore":
            return ""
        norms = torch._foreach_norm([p.grad for p in weights if p.grad is not None])
        norm = float(torch.stack([n.float() for n in norms]).norm()) if norms else 0.0
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
            self.held = copied(state())

    def back(self, t: int, why: str, rows: list[int]) -> dict[str, Any]:
        """The state to go back to, with step t's batch to be passed over. Raises Diverged if that was tried too often."""
        if self.held is None or len(self.skipped) >= TRIES:
            raise Diverged(
                f"{why} at step {t + 1}, on rows {rows}; {len(self.skipped)} batches were passed over before: "
                "lower `lr`, add `clip`, or look at those rows"
            )
        self.skipped.append(t)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / "passed_over.jsonl").open("a") as file:
                file.write(json.dumps({"step": t + 1, "why": why, "rows": rows}) + "\n")
        return copied(self.held)

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"losses": list(self.losses), "norms": list(self.norms), "skipped": list(self.skipped)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there; what was passed over since stays passed over."""
        self.losses, self.norms = deque(state["losses"], maxlen=WINDOW), deque(state["norms"], maxlen=WINDOW)
        self.skipped = sorted({*self.skipped, *state["skipped"]})
