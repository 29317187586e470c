"""The embedded world and the readers: seconds and MB, the first time and from the cache.

    python benchmarks/worlds.py                 # in a folder of its own that is removed again
    python benchmarks/worlds.py --rows 0        # without the JSONL run

Every figure is taken in a fresh process. Promised: cold at most 30 s on 2 cores for at least 10 MB of docstrings, warm
at most 1 s; a million JSONL rows under 1 GiB of resident memory. `--strict` exits with 1 where a promise is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SRC = Path(__file__).resolve().parents[1] / "src"


def gathered(folder: Path) -> dict[str, float]:
    """Seconds from the call to a table, and what is in it."""
    from trainlore.worlds import python_docs as world

    start = time.perf_counter()
    table = world.gather(folder)
    seconds = time.perf_counter() - start
    size = world.megabytes(table)
    return {
        "seconds": seconds,
        "docs_mb": sum(size.values()),
        "table_mb": table.nbytes / 1e6,
        "rows": table.num_rows,
        "domains": len(size),
        "fingerprint": int(world.fingerprint(table)[:8], 16),
    }


def derived(folder: Path) -> dict[str, float]:
    """Seconds for each table made of the whole one."""
    from trainlore.worlds import python_docs as world

    table = world.gather(folder)
    seconds = {}
    for make in (world.fingerprint, world.parts, world.summaries, world.preferences):
        start = time.perf_counter()
        make(table)
        seconds[make.__name__] = time.perf_counter() - start
    return seconds


def read(folder: Path) -> dict[str, float]:
    """Seconds and peak memory of reading the JSONL file of the folder."""
    from trainlore.primitives.reading import read

    start = time.perf_counter()
    table = read(folder / "rows.jsonl", folder / "read")
    seconds = time.perf_counter() - start
    unit = 2**20 if sys.platform != "darwin" else 2**30
    return {
        "seconds": seconds,
        "rows": table.num_rows,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
    }


def rows(path: Path, count: int) -> None:
    """A JSONL file of made-up chats, about 0.7 KB a row."""
    words = [f"word{k}" for k in range(19)]
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            text = " ".join(words[(i * 7 + k * (1 + i % 5)) % len(words)] for k in range(60))
            chat = [{"role": "user", "content": text[:80]}, {"role": "assistant", "content": text[-80:]}]
            file.write(json.dumps({"id": i, "text": text, "label": i % 7, "messages": chat}) + "\n")


def fresh(what: str, folder: Path) -> dict[str, float]:
    """Run one of the functions above in a process of its own."""
    command = [sys.executable, __file__, "--only", what, "--folder", str(folder)]
    beside = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(SRC), os.environ.get("PYTHONPATH")]))}
    return json.loads(subprocess.run(command, env=beside, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the JSONL run; 0 leaves it out")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a promise is broken")
    parser.add_argument("--only", choices=("gathered", "derived", "read"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return print(json.dumps(globals()[args.only](args.folder)))

    broken = []

    def say(line: str, kept: bool) -> None:
        print(f"  {line}" + ("" if kept else "   BROKEN"))
        if not kept:
            broken.append(line)

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        cold = fresh("gathered", folder)
        print(f"python-docs: {cold['rows']:,.0f} rows of {cold['domains']:.0f} domains, {cores} cores")
        say(
            f"cold {cold['seconds']:6.2f} s   {cold['docs_mb']:.1f} MB of docstrings, {cold['table_mb']:.1f} MB with code",
            cold["seconds"] <= 30 and cold["docs_mb"] >= 10,
        )
        warm = min((fresh("gathered", folder) for _ in range(3)), key=lambda r: r["seconds"])
        say(
            f"warm {warm['seconds']:6.2f} s   best of 3",
            warm["seconds"] <= 1 and warm["fingerprint"] == cold["fingerprint"],
        )
        for what, seconds in fresh("derived", folder).items():
            print(f"  {what:<12} {seconds:6.2f} s")
        if args.rows:
            rows(folder / "rows.jsonl", args.rows)
            size = (folder / "rows.jsonl").stat().st_size / 1e6
            got = fresh("read", folder)
            print(f"JSONL: {got['rows']:,.0f} rows, {size:,.0f} MB")
            say(
                f"cold {got['seconds']:6.2f} s   {size / got['seconds']:.0f} MB/s, peak {got['peak_gib']:.2f} GiB",
                got["peak_gib"] < 1,
            )
            print(f"  warm {fresh('read', folder)['seconds']:6.3f} s")
    if broken and args.strict:
        sys.exit(1)


if __name__ == "__main__":
    main()
