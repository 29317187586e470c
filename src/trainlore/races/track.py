"""Looking on at a training without touching it: the score at points of the budget, and a pause where it is to be judged."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainlore import meter, store
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Measure, Part

WARM = 3  # the first steps load code and say nothing of the speed


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Track(Part):
    """Measure held-out rows at even points of the training, on nobody's bill, into a file.

    At `pause`, a share of the budget, the training is left as after Ctrl-C: going on gives the same bits.
    """

    judge: Measure | None = None  # without one there are only pauses
    rows: Data | None = None
    to: Path
    points: int = 8
    pause: float = 2.0

    def start(self, loop: Any) -> dict[str, Any]:
        return {"points": [], "done": 0.0, "looked": 0.0, "began": time.time(), "warm": None}

    def watch(self, loop: Any, s: dict[str, Any], record: dict[str, Any]) -> None:
        before, s["done"] = s["done"], loop.done
        if record["t"] == WARM:
            s["warm"] = [time.time() - s["began"] - s["looked"], loop.done]
        pausing = before < self.pause <= loop.done < 1
        due = int(before * self.points) < int(loop.done * self.points)
        if due or pausing:
            self._look(loop, s, record, due, pausing)
        if pausing:
            loop.run.interrupted = True

    def _look(self, loop: Any, s: dict[str, Any], record: dict[str, Any], due: bool, pausing: bool) -> None:
        start = time.perf_counter()
        was = loop.model.net.training
        report = None
        if self.judge is not None:
            with meter.unpaid(), _judged(loop):
                report = self.judge(Run(loop.run.seed), loop.model, self.rows)
            loop.model.net.train(was)
        now = time.perf_counter()
        s["looked"] += now - start
        seconds = (
            time.time() - s["began"] - s["looked"]
        )  # of one sitting: a training that was paused is timed by its steps
        point = {"t": record["t"], "work": record["work"], "tokens": record["tokens"], "seconds": seconds}
        point |= {"done": loop.done, "score": report.value if report else None}
        if due:
            s["points"] = [*s["points"], point]
        told: dict[str, Any] = {"points": s["points"], "at": point, "looked": s["looked"], "warm": s["warm"]}
        if report is not None:
            told["better"] = report.measured[0].better
        if pausing and report is not None:
            told["values"] = report.measured[0].values.tolist()
        store.write(self.to, json.dumps(told))


@contextmanager
def _judged(loop: Any) -> Iterator[None]:
    """The model with the weights that would be handed on now; afterwards with those in training again."""
    final = loop.readout() if loop.readout is not None else None
    if final is None:
        yield
        return
    net = loop.model.net
    trained = {k: v.detach().clone() for k, v in net.state_dict().items()}
    net.load_state_dict(final)
    try:
        yield
    finally:
        net.load_state_dict(trained)
