"""All source files to one table, spread over processes. Run as a script, this file is such a process."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad
from trainlore.worlds.python_docs.packages import SOURCE, sources
from trainlore.worlds.python_docs.parsing import COLUMNS, documented

SCHEMA = pa.schema([(c, pa.int32() if c == "line" else pa.large_string()) for c in COLUMNS])


def extracted(found: dict[str, tuple[Path, str]], workers: int | None) -> pa.Table:
    """Rows of all packages in the order of domain, path and line."""
    jobs, sizes = [], []
    for domain in sorted(found):
        for file, where, size in sources(found[domain][0], SOURCE):
            jobs.append((str(file), domain, where))
            sizes.append(size)
    if not jobs:
        raise Bad(f"no Python source under {', '.join(str(root) for root, _ in found.values())}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(workers or min(cores, 8), len(jobs) // 64)) if sys.executable else 1
    shares: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for i in sorted(range(len(jobs)), key=lambda i: -sizes[i]):  # the largest first, each to the least loaded
        least = load.index(min(load))
        shares[least].append(i)
        load[least] += sizes[i] + 2000
    return _spread(jobs, [sorted(share) for share in shares])


def _spread(jobs: list[tuple[str, str, str]], shares: list[list[int]]) -> pa.Table:
    """Read each share in a process of its own but the first, which is read here, as are those whose process fails.

    Plain subprocesses rather than multiprocessing: nothing of the caller's `__main__` runs again in them.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{k}.arrow" for k in range(len(shares))]
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for k in range(1, len(shares)):
                todo = Path(folder) / f"{k}.json"
                todo.write_text(json.dumps([[i, *jobs[i]] for i in shares[k]]))
                command = [sys.executable, "-P", __file__, str(todo), str(places[k])]
                beside = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
                with suppress(OSError):
                    running[k] = subprocess.Popen(command, env=beside, stderr=subprocess.DEVNULL)
            tables = {0: _rows([(i, *jobs[i]) for i in shares[0]])}
            for k in range(1, len(shares)):
                whole = k in running and running[k].wait() == 0
                table = mapped(places[k]) if whole else None
                tables[k] = table if table is not None else _rows([(i, *jobs[i]) for i in shares[k]])
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        table = pa.concat_tables([tables[k] for k in range(len(shares))])
        order = np.argsort(table["job"].to_numpy(), kind="stable")
        return table.drop_columns(["job"]).take(order).combine_chunks()


def mapped(path: Path) -> pa.Table | None:
    """An Arrow file as a table in the memory of the disk; None where there is none, or a damaged one."""
    with suppress(OSError, pa.ArrowInvalid):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return None


def _work(todo: str, place: str) -> None:
    """What a process of `_spread` does."""
    table = _rows([tuple(job) for job in json.loads(Path(todo).read_text())])
    with pa.ipc.new_file(place, table.schema) as out:
        out.write_table(table)


def _rows(jobs: list[tuple[int, str, str, str]]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in ("job", *COLUMNS)}
    collects = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and looking for some in them doubles the time
    try:
        for i, file, domain, where in jobs:
            for row in documented(Path(file).read_bytes(), domain, where):
                for name, value in zip(columns, (i, *row), strict=True):
                    columns[name].append(value)
    finally:
        if collects:
            gc.enable()
    return pa.table(columns, schema=pa.schema([pa.field("job", pa.int32()), *SCHEMA]))


if __name__ == "__main__":
    _work(*sys.argv[1:])
