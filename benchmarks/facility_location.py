"""Greedy facility location against `submodlib-py` and `apricot-select`: the same value, CPU seconds, memory.

    python benchmarks/facility_location.py                          # ours alone where the packages are not installed
    python benchmarks/facility_location.py --peers other/bin/python # the interpreter that has them
    python benchmarks/facility_location.py --rows 2000 --count 50 --large-rows 0

One process and one thread each, by the lazy greedy of each, on rows around 200 centres. Two figures: from the rows on (the
packages get their similarities from numpy's product, the quickest they can have them), and the greedy alone with all
similarities given. Seconds are those of the CPU, so that a busy machine does not matter. Ours does not need the
similarities of all pairs at once: the last lines choose among very many rows.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import numpy as np


def points(rows: int, dimensions: int = 64) -> np.ndarray:
    """Rows of length 1 around 200 centres of unlike sizes."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(200, dimensions)).astype(np.float32)
    x = centres[np.minimum(rng.zipf(1.3, rows) - 1, 199)] + rng.normal(size=(rows, dimensions)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def value(x: np.ndarray, chosen: list[int]) -> float:
    """What the chosen rows are worth, in float64."""
    x = x.astype(np.float64)
    return float(sum(np.maximum(x[at : at + 4096] @ x[chosen].T, 0).max(1).sum() for at in range(0, len(x), 4096)))


def ours(x: np.ndarray, count: int, given: bool) -> tuple[float, list[int]]:
    import torch

    from trainlore.primitives.greedy import facility_location

    torch.set_num_threads(1)
    rows = torch.from_numpy(np.maximum(x @ x.T, 0) if given else x)
    start = time.process_time()
    chosen, _ = facility_location(rows, count, metric="precomputed" if given else "cosine")
    return time.process_time() - start, chosen.tolist()


def submodlib(x: np.ndarray, count: int, given: bool) -> tuple[float, list[int]]:
    from submodlib import FacilityLocationFunction

    start = time.process_time()
    similar = np.maximum(x @ x.T, 0)
    start = time.process_time() if given else start
    f = FacilityLocationFunction(n=len(x), mode="dense", sijs=similar, separate_rep=False)
    quiet = {"stopIfZeroGain": False, "stopIfNegativeGain": False, "verbose": False, "show_progress": False}
    found = f.maximize(budget=count, optimizer="LazyGreedy", **quiet)
    return time.process_time() - start, [int(j) for j, _ in found]


def apricot(x: np.ndarray, count: int, given: bool) -> tuple[float, list[int]]:
    from apricot import FacilityLocationSelection

    FacilityLocationSelection(2, metric="precomputed", optimizer="lazy").fit(np.eye(8))  # it compiles itself first
    start = time.process_time()
    similar = np.maximum(x @ x.T, 0).astype(np.float64)  # float32 it turns into float64 itself
    start = time.process_time() if given else start
    model = FacilityLocationSelection(count, metric="precomputed", optimizer="lazy").fit(similar)
    return time.process_time() - start, [int(j) for j in model.ranking]


TOOLS = {"ours": ours, "submodlib": submodlib, "apricot": apricot}


def large(rows: int, count: int, cover: int) -> tuple[float, list[int]]:
    """Ours on very many rows, of which some at random are to be covered."""
    import torch

    from trainlore.primitives.greedy import facility_location

    torch.set_num_threads(1)
    x = torch.from_numpy(points(rows))
    some = torch.from_numpy(np.random.default_rng(1).permutation(rows)[:cover])
    start = time.process_time()
    chosen, _ = facility_location(x, count, reference=x[some])
    return time.process_time() - start, chosen.tolist()


def measured(python: str, what: list[str]) -> dict[str, Any] | str:
    """A process of its own; why not, where it failed."""
    done = subprocess.run([python, __file__, *what], capture_output=True, text=True)
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--large-rows", type=int, default=1_000_000, help="rows of the last run; 0 leaves it out")
    parser.add_argument("--cover", type=int, default=20_000, help="rows to be covered in the last run")
    parser.add_argument("--peers", default=sys.executable, help="the interpreter that has the packages")
    parser.add_argument("--without", nargs="*", default=[], choices=("submodlib", "apricot"))
    parser.add_argument("--only", choices=(*TOOLS, "large"), help=argparse.SUPPRESS)
    parser.add_argument("--given", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        if args.only == "large":
            seconds, chosen = large(args.large_rows, args.count, args.cover)
        else:
            seconds, chosen = TOOLS[args.only](points(args.rows), args.count, args.given)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return print(json.dumps({"seconds": seconds, "chosen": chosen, "peak": peak}))

    shape = ["--rows", str(args.rows), "--count", str(args.count)]
    x = points(args.rows)
    print(f"{args.count} of {args.rows:,} rows of 64 numbers; CPU seconds of one thread, peak memory of the process")
    first: dict[bool, dict[str, Any]] = {}
    for tool in (t for t in TOOLS if t not in args.without):
        for given in (False, True):
            python = sys.executable if tool == "ours" else args.peers
            out = measured(python, ["--only", tool, *shape, *(["--given"] if given else [])])
            name = f"  {tool:<10} {'similarities given' if given else 'from the rows':<19}"
            if isinstance(out, str):
                print(f"{name} not measured: {out}")
                break
            out["value"] = value(x, out["chosen"])
            mine = first.setdefault(given, out)
            print(
                f"{name} {out['seconds']:8.2f} s  {out['peak']:6.2f} GiB  value {out['value']:.4f}"
                + (f"  {out['seconds'] / mine['seconds']:6.1f} x ours" if tool != "ours" else ""),
                flush=True,
            )
            if abs(out["value"] / mine["value"] - 1) > 1e-6:
                sys.exit(f"{tool} reached another value than ours: {out['value']} and {mine['value']}")
    if args.large_rows:
        many = ["--large-rows", str(args.large_rows), "--cover", str(args.cover), "--count", str(args.count)]
        out = measured(sys.executable, ["--only", "large", *many])
        if isinstance(out, str):
            sys.exit(f"the large run failed: {out}")
        print(
            f"  ours, {args.count} of {args.large_rows:,} rows, {args.cover:,} to be covered: {out['seconds']:.0f} s, {out['peak']:.2f} GiB"
        )


if __name__ == "__main__":
    main()
