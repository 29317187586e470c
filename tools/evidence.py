"""Measure every claim at full seeds and write the results. Resumable: what is recorded for a file as it stands is not run again.

python tools/evidence.py [NAME ...] [--seeds N] [--again] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
RESULTS = ROOT / "results"
FRESH = 1000  # no seed that anybody looked at while a claim was written


def recorded() -> set[tuple[str, str, int]]:
    """(method, hash of its file, seeds) of every result there is."""
    files = [path for path in RESULTS.glob("*/*.jsonl") if path.parent.name != "races"]
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    return {(r["method"], r["source"], r["n"]) for r in lines}


def measure(name: str, seeds: int | None) -> dict:
    """One claim at full seeds: its row for results/."""
    import torch

    from claims_found import claims
    from trainlore.registry import entry

    torch.set_num_threads(1)
    claim, start = claims()[name], time.perf_counter()
    row = claim.row(claim.run(seeds or claim.seeds, first=FRESH), entry(name)["source"])
    return {**row, "seconds": round(time.perf_counter() - start, 1), "date": time.strftime("%Y-%m-%d")}


def main() -> int:
    """Run what is missing, two claims at a time; a claim that fails is named and the rest goes on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--again", action="store_true", help="measure even what is recorded")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    from claims_found import claims
    from trainlore.registry import entry, index

    done, found = recorded(), claims()
    wanted = args.names or sorted(n for n in found if n in index())
    todo = [n for n in wanted if args.again or (n, entry(n)["source"], args.seeds or found[n].seeds) not in done]
    print(f"{len(todo)} of {len(wanted)} claims to measure")
    failed = []
    with ProcessPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(measure, n, args.seeds): n for n in todo}
        for job in as_completed(jobs):
            name = jobs[job]
            try:
                row = job.result()
            except Exception as error:
                failed.append(name)
                print(f"{name:28s} FAILED: {type(error).__name__}: {error}", flush=True)
                continue
            path = RESULTS / row["world"] / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"{name:28s} {row['verdict']:20s} {row['difference']:+.4g} (p {row['p']:.2g}, n {row['n']}, {row['seconds']} s)",
                flush=True,
            )
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
