"""Where heats run: processes of this machine, or a Ray cluster. A heat gives the same bits wherever it runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from typing import Any

from trainlore.errors import Bad
from trainlore.races import heat as heats

Done = Callable[[dict[str, Any], dict[str, Any]], None]
KILLED = "the process of the heat died (killed, or out of memory)"


def _end_with_parent() -> None:
    """Leave when the race is killed: a heat that went on alone would write beside the one that a resumed race starts."""
    parent = parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def workers(on: str, jobs: int) -> Iterator[Callable[[Iterable[dict[str, Any]], Done], None]]:
    """A function that runs tasks, `jobs` at a time, and calls `done(task, result)` as each ends."""
    if on == "ray":
        with _ray(jobs) as cluster:
            yield cluster
        return
    if on != "local":
        raise Bad(f"on is local or ray, not {on!r}")
    # One process a slot, each in a pool of its own: one that dies takes only its own heat with it.
    slots: dict[int, ProcessPoolExecutor | None] = dict.fromkeys(range(jobs))

    # One server imports what heats need, which takes seconds, and every worker is a fork of it, at once.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read by the libraries when the server starts
    context = get_context("forkserver")
    context.set_forkserver_preload(list(heats.NEEDED))

    def started() -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=context, initializer=_end_with_parent)

    for slot in slots:  # what all heats share is made meanwhile
        slots[slot] = started()
        slots[slot].submit(heats.warm)  # type: ignore[union-attr]

    def submit(slot: int, task: dict[str, Any]) -> Future:
        if (pool := slots[slot]) is None:
            pool = slots[slot] = started()
        try:
            return pool.submit(heats.run, task)
        except BrokenProcessPool:  # it died between two heats
            slots[slot] = None
            return submit(slot, task)

    def run(tasks: Iterable[dict[str, Any]], done: Done) -> None:
        todo, free = list(tasks), list(slots)
        running: dict[Future, tuple[int, dict[str, Any]]] = {}
        while todo or running:
            while todo and free:
                slot, task = free.pop(0), todo.pop(0)
                running[submit(slot, task)] = (slot, task)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                slot, task = running.pop(future)
                try:
                    found = future.result()
                except BrokenProcessPool:
                    slots[slot], found = None, {"state": heats.FAILED, "error": KILLED}
                free.append(slot)
                done(task, found)

    try:
        yield run
    finally:
        for pool in slots.values():
            if pool is not None:
                for process in list((pool._processes or {}).values()):
                    process.terminate()  # after Ctrl-C a heat is resumed from its checkpoint, not waited for
                pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _ray(jobs: int) -> Iterator[Callable[[Iterable[dict[str, Any]], Done], None]]:
    try:
        import ray
    except ImportError:
        raise Bad("--on ray needs Ray: pip install 'trainlore[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        # A cluster named by RAY_ADDRESS, else processes of this machine under Ray.
        how: dict[str, Any] = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": jobs}
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False, **how)
    remote = ray.remote(num_cpus=1, max_retries=0, runtime_env={"env_vars": {"OMP_WAIT_POLICY": "passive"}})(heats.run)

    def run(tasks: Iterable[dict[str, Any]], done: Done) -> None:
        running = {remote.remote(task): task for task in tasks}
        while running:
            (ref, *_), _ = ray.wait(list(running), num_returns=1)
            task = running.pop(ref)
            try:
                found = ray.get(ref)
            except ray.exceptions.RayError as error:
                found = {"state": heats.FAILED, "error": f"{KILLED}: {type(error).__name__}"}
            done(task, found)

    try:
        yield run
    finally:
        if ours:
            ray.shutdown()
