"""Batches made ahead of the step that wants them, while the step before still runs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch


class Ahead:
    """Makes the batches of the next steps in threads. `make(t, n)` must depend on nothing but its arguments.

    Collating reads Arrow columns and fills arrays, which leaves the interpreter free for the step. With no workers a
    batch is made when it is asked for.
    """

    def __init__(self, make: Callable[[int, int], Batch], workers: int, pinned: bool, depth: int = 2) -> None:
        if workers < 0:
            raise Bad(f"workers={workers} must be at least 0")
        self.make, self.pinned, self.depth = make, pinned, depth * max(1, workers)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="batches") if workers else None
        self.waiting: dict[tuple[int, int], Future[Batch]] = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, t: int, n: int) -> Batch:
        """The batch of n rows of step t; those after it are begun."""
        if self.pool is None:
            return self._made(t, n)
        ready = self.waiting.pop((t, n), None)
        for stale in [k for k in self.waiting if k[0] <= t or k[1] != n]:
            self.waiting.pop(stale).cancel()
        for later in range(t + 1, t + 1 + self.depth):
            if (later, n) not in self.waiting:
                self.waiting[later, n] = self.pool.submit(self._made, later, n)
        return ready.result() if ready is not None else self._made(t, n)

    def _made(self, t: int, n: int) -> Batch:
        batch = self.make(t, n)
        if self.pinned:  # only from pinned memory does the copy to the device run beside the step
            batch = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in batch.items()}
        return batch
