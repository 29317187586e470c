"""How a training is seen to go: bars on a terminal, and the curve that stays with the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bars(show: bool) -> Iterator[Any]:
    """A running rich Progress, or None."""
    if not show:
        yield None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[info]}"),
    )
    with Progress(*columns, transient=False, refresh_per_second=5) as progress:
        yield progress


class Curve:
    """Loss and rate over the steps of a training: every step, then every second, every fourth, so that it stays short.

    A curve of every step would make checkpoints of a long training slower and slower to write.
    """

    def __init__(self, most: int) -> None:
        self.most, self.every = most, 1
        self.points: dict[str, list[float]] = {"t": [], "loss": [], "rate": []}

    def add(self, t: int, loss: float, rate: float) -> bool:
        """Note step t (1, 2, ...), if it is one of those noted; whether it is."""
        if (t - 1) % self.every:
            return False
        if len(self.points["t"]) >= 2 * self.most:
            self.every *= 2
            for values in self.points.values():
                del values[1::2]
            if (t - 1) % self.every:
                return False
        for key, value in (("t", t), ("loss", loss), ("rate", rate)):
            self.points[key].append(value)
        return True

    def thin(self) -> dict[str, list[float]]:
        """At most so many points, about."""
        return {k: v[:: max(1, len(v) // self.most)] for k, v in self.points.items()}

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {"points": {k: list(v) for k, v in self.points.items()}, "every": self.every}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.points, self.every = {k: list(v) for k, v in state["points"].items()}, state["every"]
