"""Every benchmark in turn, printed and kept in benchmarks/RESULTS.md with the machine's name."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RUNS = [
    ["loop.py"], ["loop.py", "--precision", "bf16"], ["startup.py"], ["worlds.py"], ["dsir.py"], ["near_duplicates.py"],
    ["facility_location.py"], ["kmeans.py"], ["row_gradients.py"], ["scoring.py"], ["memory.py", "--rows", "60000"],
    ["ray_data.py", "--size", "400", "--room", "320"], ["planted.py"], ["races.py", "overhead"],
    ["engine.py", "sampler", "checkpoints"], ["compression.py", "product", "memory", "structured"],
]  # fmt: skip


def processor() -> str:
    """What the machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main() -> int:
    import os

    said = [
        f"# Benchmarks\n\n{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, Python {platform.python_version()}. Ratios are of one run.\n"
    ]
    failed = 0
    for command in RUNS:
        print("\n$", *command, flush=True)
        done = subprocess.run([sys.executable, str(HERE / command[0]), *command[1:]], capture_output=True, text=True)
        text = done.stdout + (f"\nfailed:\n{done.stderr[-1500:]}" if done.returncode else "")
        failed += bool(done.returncode)
        print(text, flush=True)
        said.append(f"## {' '.join(command)}\n\n```text\n{text.strip()}\n```\n")
    (HERE / "RESULTS.md").write_text("\n".join(said))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
