"""Greedy facility location against `submodlib-py` and `apricot-select`: the same value, CPU seconds, memory.

    python benchmarks/facility_location.py                          # ours alone where the packages are not installed
    python benchmarks/facility_location.py --peers other/bin/python # the interpreter that has them
    python benchmarks/facility_location.py --rows 2000 --count 50 --large-rows 0

One process and one thread each, by the lazy greedy of each, on rows around 200 centres. Two figures: from the rows on (the
packages get their similarities from numpy's product, the quickest they can have them), and the greedy alone with all
similarities given. Seconds are those of the CPU, so that a busy machine does not matter; a package that takes longer than
`--limit` or more memory than `--memory` is stopped, and the line says so. Ours does not need the similarities of all pairs
at once. The last lines choose among very many rows, by a random sample of them to be covered and by random candidates:
what the choice is worth to all rows, as shares of an exact greedy on a sample, and against as many rows at random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
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


def stochastic(x: np.ndarray, count: int, given: bool) -> tuple[float, list[int]]:
    """Ours, each row the best of a few at random."""
    import torch

    from trainlore.primitives.greedy import facility_location

    torch.set_num_threads(1)
    rng, rows = torch.Generator().manual_seed(0), torch.from_numpy(x)
    start = time.process_time()
    chosen, _ = facility_location(rows, count, mode="stochastic", generator=rng)
    return time.process_time() - start, chosen.tolist()


def covering(x: np.ndarray, count: int, cover: int) -> tuple[float, list[int]]:
    """Ours, where only some rows at random are to be covered."""
    import torch

    from trainlore.primitives.greedy import facility_location

    torch.set_num_threads(1)
    rows = torch.from_numpy(x)
    some = torch.from_numpy(np.random.default_rng(1).permutation(len(x))[:cover])
    start = time.process_time()
    chosen, _ = facility_location(rows, count, reference=rows[some])
    return time.process_time() - start, chosen.tolist()


def sampled(x: np.ndarray, count: int, some: int) -> tuple[float, list[int]]:
    """The exact greedy of a random sample of the rows, which are all it may choose and all it covers."""
    rows = np.random.default_rng(2).permutation(len(x))[:some]
    seconds, chosen = ours(x[rows], count, False)
    return seconds, rows[chosen].tolist()


def measured(python: str, what: list[str], limit: float = 3600, memory: float = 1000) -> dict[str, Any] | str:
    """A process of its own; why not, where it failed or went over the limits (seconds, GiB)."""

    def limits() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (int(limit) + 1, int(limit) + 2))
        resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30),) * 2)

    try:
        command = [python, __file__, *what]
        done = subprocess.run(command, capture_output=True, text=True, timeout=4 * limit, preexec_fn=limits)
    except subprocess.TimeoutExpired:
        return f"stopped after {4 * limit:.0f} s by the clock"
    if done.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"stopped after {limit:.0f} s"
    if "MemoryError" in done.stderr or "bad_alloc" in done.stderr:
        return f"stopped at {memory:.0f} GiB"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
    return json.loads(done.stdout.splitlines()[-1])


def only(args: argparse.Namespace) -> None:
    """What a process of its own does: print seconds, choice and peak as JSON."""
    x = points(args.large_rows if args.large else args.rows)
    if args.only == "covering":
        seconds, chosen = covering(x, args.count, args.cover)
    elif args.only == "sampled":
        seconds, chosen = sampled(x, args.count, args.cover)
    else:
        seconds, chosen = {**TOOLS, "stochastic": stochastic}[args.only](x, args.count, args.given)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "chosen": chosen, "peak": peak}))


def against(args: argparse.Namespace) -> None:
    """Ours and the packages on rows of which all pairs fit in memory."""
    shape = ["--rows", str(args.rows), "--count", str(args.count), "--cover", str(args.rows // 4)]
    x = points(args.rows)
    print(f"{args.count} of {args.rows:,} rows of 64 numbers; CPU seconds of one thread, peak memory of the process")
    first: dict[bool, dict[str, Any]] = {}
    for tool in (t for t in TOOLS if t not in args.without):
        for given in (False, True):
            python, limits = (sys.executable, ()) if tool == "ours" else (args.peers, (args.limit, args.memory))
            out = measured(python, ["--only", tool, *shape, *(["--given"] if given else [])], *limits)
            name = f"  {tool:<10} {'similarities given' if given else 'from the rows':<19}"
            if isinstance(out, str):
                print(f"{name} not measured: {out}", flush=True)
                continue
            out["value"] = value(x, out["chosen"])
            mine = first.setdefault(given, out)
            print(
                f"{name} {out['seconds']:8.2f} s  {out['peak']:6.2f} GiB  value {out['value']:.4f}"
                + (f"  {out['seconds'] / mine['seconds']:6.1f} x ours" if tool != "ours" else ""),
                flush=True,
            )
            if abs(out["value"] / mine["value"] - 1) > 1e-6:
                sys.exit(f"{tool} reached another value than ours: {out['value']} and {mine['value']}")
    for name in ("stochastic", "covering"):
        out = measured(sys.executable, ["--only", name, *shape])
        if isinstance(out, str):
            sys.exit(f"{name} failed: {out}")
        share = value(x, out["chosen"]) / first[False]["value"]
        said = "stochastic" if name == "stochastic" else "a quarter of the rows covered"
        print(f"  ours, {said:<30} {out['seconds']:8.2f} s  {out['peak']:6.2f} GiB  {share:.2%} of the exact value")


def very_many(args: argparse.Namespace) -> None:
    """Ours on rows of which not all pairs fit anywhere."""
    shape = ["--large", "--large-rows", str(args.large_rows), "--count", str(args.count), "--cover", str(args.cover)]
    x = points(args.large_rows)
    chance = value(x, np.random.default_rng(3).permutation(len(x))[: args.count].tolist())
    print(f"{args.count} of {args.large_rows:,} rows; what they are worth to all rows, against as many at random")
    for name, said in (
        ("covering", f"all rows to choose from, {args.cover:,} at random to be covered"),
        ("sampled", f"the exact greedy of {args.cover:,} rows at random"),
    ):
        out = measured(sys.executable, ["--only", name, *shape])
        if isinstance(out, str):
            sys.exit(f"{name} failed: {out}")
        worth = value(x, out["chosen"])
        print(
            f"  {said:<60} {out['seconds']:7.1f} s  {out['peak']:5.2f} GiB  {worth / chance:.4f} x random", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--large-rows", type=int, default=1_000_000, help="rows of the last run; 0 leaves it out")
    parser.add_argument("--cover", type=int, default=10_000, help="rows to be covered in the last run")
    parser.add_argument("--peers", default=sys.executable, help="the interpreter that has the packages")
    parser.add_argument("--without", nargs="*", default=[], choices=("submodlib", "apricot"))
    parser.add_argument("--limit", type=float, default=600, help="CPU seconds a package may take")
    parser.add_argument("--memory", type=float, default=16, help="GiB of addresses a package may take")
    parser.add_argument("--only", choices=(*TOOLS, "stochastic", "covering", "sampled"), help=argparse.SUPPRESS)
    parser.add_argument("--given", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--large", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        return only(args)
    against(args)
    if args.large_rows:
        very_many(args)


if __name__ == "__main__":
    main()
