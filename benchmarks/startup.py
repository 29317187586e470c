"""How fast trainlore answers: its import, its list of methods, the check of a whole recipe.

    python benchmarks/startup.py
    python benchmarks/startup.py --strict       # exit with 1 where a promise is broken

Promised: `import trainlore` under 20 ms, `trainlore ls` under 0.3 s, planning a recipe of ten steps or more under 0.2 s,
none of them loading torch. Each is the wall clock of fresh processes, best of five. Commands are timed whole, with the
start of the interpreter (the first row); import and planning are timed inside, and planning as a whole command too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/first_life.yaml"
TIMED = "import sys, time; t = time.perf_counter(); {code}; print(time.perf_counter() - t, 'torch' in sys.modules)"
COMMAND = """
import runpy, sys
sys.argv = ["trainlore", *{args!r}]
try:
    runpy.run_module("trainlore", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print("torch" in sys.modules, file=sys.stderr)
"""


def run(*args: str) -> tuple[float, str, str]:
    """Wall-clock seconds of `python ARGS`, and what it wrote."""
    beside = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
    }
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *args], cwd=ROOT, env=beside, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"python {' '.join(args)} failed:\n{(done.stderr or done.stdout)[-2000:]}")
    return seconds, done.stdout, done.stderr


def inside(code: str, times: int) -> tuple[float, bool]:
    """Seconds the code takes inside a fresh process, best of `times`; whether torch was loaded."""
    found = [run("-c", TIMED.format(code=code))[1].split() for _ in range(times)]
    return min(float(seconds) for seconds, _ in found), any(torch == "True" for _, torch in found)


def whole(args: list[str], times: int) -> tuple[float, bool]:
    """Seconds of `python -m trainlore ARGS` from start to exit, best of `times`; whether torch was loaded."""
    seconds = min(run("-m", "trainlore", *args)[0] for _ in range(times))
    return seconds, run("-c", COMMAND.format(args=args))[2].strip().endswith("True")  # asked apart: asking takes time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=5, help="fresh processes of each; the best counts")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a promise is broken")
    args = parser.parse_args()

    plan = f"from trainlore import recipe; recipe.read({RECIPE!r})"
    figures = [
        ("python -c pass", 0.0, lambda: (min(run("-c", "pass")[0] for _ in range(args.times)), False)),
        ("import trainlore", 0.020, lambda: inside("import trainlore", args.times)),
        ("trainlore ls", 0.3, lambda: whole(["ls"], args.times)),
        (f"trainlore validate {RECIPE}", 0.0, lambda: whole(["validate", RECIPE], args.times)),
        (f"plan {RECIPE}", 0.2, lambda: inside(plan, args.times)),
    ]
    broken = []
    for name, promised, measure in figures:
        try:
            seconds, torch = measure()
        except RuntimeError as error:
            print(f"  {name:<45} not measured: {str(error).strip().splitlines()[-1][:200]}")
            broken.append(name)
            continue
        kept = not torch and (not promised or seconds < promised)
        limit = f"under {promised * 1000:.0f} ms" if promised else ""
        print(
            f"  {name:<45} {seconds * 1000:7.1f} ms  {'torch loaded' if torch else 'no torch':<12} {limit} {'' if kept else 'BROKEN'}"
        )
        if not kept:
            broken.append(name)
    if broken and args.strict:
        sys.exit(1)


if __name__ == "__main__":
    main()
