"""Peak memory of every selector on a million made-up rows, each in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py --rows 100000 --only dsir near_duplicates
    python benchmarks/memory.py --again          # forget what was measured before

All of data/select, data/clean and data/order. The rows lie in memory-mapped Arrow files, as rows read from a file do: texts
of 30 to 90 words of a Zipf vocabulary, one in twenty a copy or near copy of another; embeddings of 384 numbers; features
for a small classifier; short texts and questions for a small Llama. What is counted is the memory that the process has
for itself: pages of the files, which the system takes back when it needs them, are left out. A method that would take
too long on all rows is measured on three smaller numbers of rows and said to grow as it grew there.

Every measurement is kept in a file (--to), with the hash of the method's source, and is not made again: a run that was
broken off goes on. Exit 1 where a selector fails, or needs more than 4 GiB and its `needs_memory` does not say so, or says
less than half or more than twice of what was seen.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

LIMIT, WIDE = 4.0, 384  # GiB, numbers of an embedding
SLOW, SLOWER, SLOWEST = (50_000, 100_000, 200_000), (20_000, 40_000, 80_000), (5_000, 10_000, 20_000)
LEAST = 2**26  # bytes of its own below which what a method says is not judged


@dataclass(frozen=True)
class Case:
    """How a selector is tried: on which rows, with which fields, and on how many if not on all."""

    rows: str
    fields: Callable[[Any, dict[str, Any]], dict[str, Any]] | dict[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()


def few(data: Any, n: int = 500) -> Any:
    """A table of its own with the first rows, as a target from another file is."""
    from trainlore.nouns import Data

    return Data(data.take(range(min(n, len(data)))).arrow())


FAST = {"batch_size": 512}
CASES: dict[str, Case] = {
    # data/select
    "random_rows": Case("text"),
    "dsir": Case("text", lambda d, m: {"target": few(d), "tokens": 0.1, "min_words": 40}),
    "metaclip": Case("text", {"entries": tuple(f"w{i:x}" for i in range(50, 1000))}),
    "qurating": Case("text", lambda d, m: {"pairs": pairs_of(d)}),
    "dfn": Case("text", lambda d, m: {"trusted": few(d), "steps": 20}, SLOW),
    "instruct_mining": Case("text", {"indicators": ("length",), "weights": (-0.001,)}),
    "kmeans_quality": Case("vectors", {"quality": None}),
    "k_centre": Case("vectors", {"keep": 2e-4}),
    "herding": Case("vectors", {"keep": 2e-4}),
    "core_set": Case("vectors", {"keep": 2e-4}),
    "facility_location": Case("vectors", {"keep": 2e-5, "cover": 2000}),
    "search_and_prune": Case("vectors", lambda d, m: {"target": few(d), "keep": 2e-4}),
    "vote_k": Case("vectors", {}, (10_000, 20_000, 40_000)),
    "el2n": Case("features", lambda d, m: {"proxies": (m["mlp"],)}),
    "grand": Case("features", lambda d, m: {"proxies": (m["mlp"],)}, SLOW),
    "influence_scores": Case("features", lambda d, m: {"model": m["mlp"], "epochs": 1.0, **FAST}, SLOW),
    "color_filter": Case("told", lambda d, m: {"prior": m["llama"], "conditional": m["other"]}, SLOWER),
    "rds": Case("told", lambda d, m: {"encoder": m["llama"], "target": few(d)}, SLOWER),
    "got_d": Case("told", lambda d, m: {"encoder": m["llama"], "target": few(d), "iterations": 5}, SLOWER),
    "learning_percentage": Case("told", lambda d, m: {"model": m["llama"], "epochs": 1, **FAST}, SLOWEST),
    "preselect": Case(
        "told", lambda d, m: {"models": (m["llama"], m["other"]), "ability": (0.0, 1.0), "sample": 500}, SLOWER
    ),
    "codeact": Case("asked", lambda d, m: {"model": m["sums"], "keep": 0.05}, SLOWER),
    "ingenious": Case("told", {}, SLOWEST),
    # data/clean
    "exact_duplicates": Case("text"),
    "near_duplicates": Case("text"),
    "quality_rules": Case("text"),
    "decontaminate": Case("text", lambda d, m: {"tests": (few(d.take(range(0, min(5000, len(d)), 5))),)}),
    "even_pieces": Case("text"),
    "language_filter": Case("text", {}, SLOW),
    "sentence_pieces": Case("text", {"steps": 20, "threshold": 0.5}, SLOWEST),
    "embedding_duplicates": Case("vectors", {}, SLOW),
    "aflite": Case("vectors", lambda d, m: {"models": 2, "train": 2000, "least": len(d) - 1000}),
    "aum": Case("features", lambda d, m: {"model": m["mlp"], "epochs": 2.0, **FAST}, SLOW),
    "attribution_filter": Case("told", lambda d, m: {"model": m["llama"], "unsafe": few(d, 50)}, SLOWEST),
    # data/order
    "curriculum": Case("features", {"by": "hard"}),
    "cyclical_curriculum": Case("features", {"by": "hard"}),
    "difficulty_curriculum": Case("features", {"by": "hard"}),
    "hard_batches": Case("features", {"pool": 4}),
    "rs2": Case("features"),
    "metadata_conditioning": Case("told", {}, SLOWER),
    "order_effects": Case("features", lambda d, m: {"held_out": few(d), "blocks": 4, "orders": 4}, SLOW),
}


# ---- rows


def texts(rng: np.random.Generator, n: int, at: int) -> dict[str, Any]:
    vocabulary = np.array([f"w{i:x}" for i in range(50_000)])
    size = rng.integers(30, 91, n)
    words = vocabulary[np.minimum(rng.zipf(1.2, size.sum()) - 1, 49_999)]
    said = [" ".join(part.tolist()) for part in np.split(words, np.cumsum(size)[:-1])]
    for i in range(10, len(said), 40):
        said[i] = said[i - 10]
        if i + 20 < len(said):
            said[i + 20] = said[i + 10] + " w0"
    return {"text": pa.array(said, pa.large_string())}


def numbers(rng: np.random.Generator, n: int, width: int) -> dict[str, Any]:
    centres = np.random.default_rng(1).standard_normal((200, width), np.float32)
    x = centres[rng.integers(0, 200, n)] + rng.standard_normal((n, width), np.float32)
    return {
        "features": pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), width),
        "label": pa.array(rng.integers(0, 10, n)),
        "hard": pa.array(rng.random(n)),
    }


def told(rng: np.random.Generator, n: int, at: int) -> dict[str, Any]:
    from trainlore.worlds import two_domains

    made = two_domains.make(n, seed=at)
    return {name: made[name].combine_chunks() for name in ("text", "domain")}


def asked(rng: np.random.Generator, n: int, at: int) -> dict[str, Any]:
    a, b = rng.integers(0, 100, n), rng.integers(0, 100, n)
    said = [f"{i}+{j}=" for i, j in zip(a.tolist(), b.tolist(), strict=True)]
    return {
        "prompt": pa.array(said, pa.large_string()),
        "completion": pa.array([str(v) for v in (a + b).tolist()], pa.large_string()),
    }


ROWS: dict[str, Callable[[np.random.Generator, int, int], dict[str, Any]]] = {
    "text": texts,
    "vectors": lambda rng, n, at: numbers(rng, n, WIDE),
    "features": lambda rng, n, at: numbers(rng, n, 64),
    "told": told,
    "asked": asked,
}


def write(kind: str, rows: int, to: Path) -> None:
    """A file of rows of this kind, made and written a block at a time."""
    rng, out = np.random.default_rng(0), None
    for at in range(0, rows, 8192):
        batch = pa.record_batch(ROWS[kind](rng, min(8192, rows - at), at))
        out = out or pa.ipc.new_file(str(to), batch.schema)
        out.write_batch(batch)
    assert out is not None
    out.close()


def pairs_of(data: Any) -> Any:
    """Pairs of texts of which the longer is preferred."""
    from trainlore.nouns import Data

    some = list(few(data, 400).text())
    both = [sorted(p, key=len) for p in zip(some[::2], some[1::2], strict=True)]
    return Data.of({"chosen": [b for _, b in both], "rejected": [a for a, _ in both]})


# ---- measuring


def models() -> dict[str, Any]:
    """The small networks that score: the cost of a row here is the method's, not the network's."""
    from trainlore.nouns.hugging import preset
    from trainlore.worlds import tiny

    small = {"mlp": preset("mlp", seed=0, width=32), "llama": tiny.llama(), "other": tiny.llama(1)}
    return {**small, "sums": tiny.llama(arithmetic=True)}


def own() -> int:
    """Bytes of memory that this process has for itself; elsewhere than on Linux all it ever had."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def one(name: str, path: str) -> None:
    """In a process of its own: the method on the rows of the file; print what it took as JSON."""
    import torch

    from trainlore import needs
    from trainlore.nouns import Data
    from trainlore.registry import entry, load
    from trainlore.runs import Run

    torch.set_num_threads(1)
    data, case, nets = Data(pa.ipc.open_file(pa.memory_map(path)).read_all()), CASES[name], models()
    fields = case.fields(data, nets) if callable(case.fields) else case.fields
    method, kind, run = load(name)(**fields), entry(name)["kind"], Run(0)
    net = nets["llama" if case.rows == "told" else "mlp"]
    said = needs.of_method(method, data)
    print(json.dumps({"before": own(), "says": said.bytes if said else None}), flush=True)
    start = time.process_time()
    kept = data
    if kind == "Part":
        run.fit(net, data, method, steps=5, batch_size=64, precision="fp32")
    elif kind == "Measure":
        run.step(method, net, data)
    else:
        kept = run.step(method, data)
    print(json.dumps({"kept": len(kept), "seconds": time.process_time() - start, "after": own()}))


def measured(name: str, path: Path) -> dict[str, Any]:
    """The method in a process of its own, watched from here."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen([sys.executable, __file__, "--one", name, str(path)], stdout=out, stderr=wrong)
        status, peak = Path(f"/proc/{process.pid}/status"), 0
        while process.poll() is None:
            try:
                now = next((v for v in status.read_text().splitlines() if v.startswith("RssAnon")), "x 0")
                peak = max(peak, int(now.split()[1]) * 1024)
            except (OSError, ValueError):
                pass
            time.sleep(0.005)
        out.seek(0), wrong.seek(0)
        if process.returncode:
            return {"error": (wrong.read().strip().splitlines() or [f"exit {process.returncode}"])[-1][:300]}
        first, last = (json.loads(line) for line in out.read().splitlines() if line.startswith("{"))
    return {
        **first,
        **last,
        "peak": max(peak, last["after"]),
        "own": max(0, max(peak, last["after"]) - first["before"]),
    }


def grown(sizes: list[int], bytes_: list[float], rows: int) -> tuple[float, float]:
    """Bytes at `rows` and the power of the rows by which they grew from the first size to the last."""
    if bytes_[-1] < LEAST / 4 or bytes_[0] <= 0:  # too little to tell growth from noise: it grows with the rows at most
        return bytes_[-1] * rows / sizes[-1], 1.0
    power = float(np.log(bytes_[-1] / bytes_[0]) / np.log(sizes[-1] / sizes[0]))
    if power > 1.25:
        return bytes_[-1] * (rows / sizes[-1]) ** power, power
    slope = (bytes_[-1] - bytes_[-2]) / (sizes[-1] - sizes[-2])
    return bytes_[-1] + max(0.0, slope) * (rows - sizes[-1]), power


class Kept:
    """Measurements in a file, a line each."""

    def __init__(self, path: Path, again: bool) -> None:
        self.path, self.seen = path, {}
        if again:
            path.unlink(missing_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            self.seen[row["name"], row["rows"], row["source"]] = row

    def get(self, name: str, rows: int, file: Callable[[], Path]) -> dict[str, Any]:
        """One measurement, made if it was not made before."""
        from trainlore.registry import entry

        key = name, rows, entry(name)["source"] + entry(name).get("needs_memory", "")
        if key not in self.seen or "error" in self.seen[key]:
            found = {"name": name, "rows": rows, "source": key[2], **measured(name, file())}
            self.seen[key] = found
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as out:
                out.write(json.dumps(found) + "\n")
        return self.seen[key]


def told_of(name: str, case: Case, rows: int, kept: Kept, file: Callable[[str, int], Path]) -> tuple[str, bool]:
    """The line of one selector, and whether something is wrong with it."""
    from trainlore import needs

    sizes = [s for s in case.sizes if s < rows] or [rows]
    found = [kept.get(name, s, lambda s=s: file(case.rows, s)) for s in sizes]
    if bad := [f["error"] for f in found if "error" in f]:
        return f"  {name:<22} failed: {bad[0]}", True
    last, own_ = found[-1], [float(f["own"]) for f in found]
    whole, power = grown(sizes, own_, rows) if len(sizes) > 1 else (own_[-1] * rows / sizes[-1], 1.0)
    total = (last["before"] + whole) / 2**30
    line = f"  {name:<22} {'~' if sizes[-1] < rows else ' '}{total:6.2f} GiB, {whole / 2**30:.2f} its own"
    off = False
    width = {"vectors": WIDE, "features": 64, "told": 32, "asked": 32}.get(case.rows, 0)
    if last["says"] is not None:
        if callable(case.fields):  # of data that are not here
            says = last["says"] * rows / sizes[-1]
        else:
            says = needs.bytes_of(name, rows, width, case.fields) or 0
        off = last["own"] > LEAST and not 0.5 <= last["says"] / last["own"] <= 2
        line += f" (it says {says / 2**30:.2f})" + ("   OFF" if off else "")
    line += f"; {last['seconds']:.0f} s and {last['kept']:,} rows kept of {sizes[-1]:,}"
    if len(sizes) > 1:
        line += f"; grows by rows^{power:.2f}: " + ", ".join(f"{b / 2**20:.0f}" for b in own_) + " MiB"
    over = total > LIMIT and last["says"] is None
    return line + ("   OVER, and its card does not say so" if over else ""), over or off


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", help="these methods")
    parser.add_argument("--to", type=Path, default=Path("runs/memory.jsonl"), help="where measurements are kept")
    parser.add_argument("--again", action="store_true", help="forget those of before")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(*args.one)
        return 0
    if strange := set(args.only or ()) - set(CASES):
        parser.error(f"not measured here: {', '.join(sorted(strange))}; there are {', '.join(CASES)}")
    kept, wrong = Kept(args.to, args.again), 0
    print(f"{args.rows:,} rows; peak memory of a process, at most {LIMIT:.0f} GiB unless the card says what it needs")
    with tempfile.TemporaryDirectory() as folder:
        made: dict[tuple[str, int], Path] = {}

        def file(kind: str, rows: int) -> Path:
            if (kind, rows) not in made:
                made[kind, rows] = Path(folder) / f"{kind}-{rows}.arrow"
                write(kind, rows, made[kind, rows])
            return made[kind, rows]

        for kind in ROWS:
            for name, case in CASES.items():
                if case.rows == kind and (not args.only or name in args.only):
                    line, bad = told_of(name, case, args.rows, kept, file)
                    print(line, flush=True)
                    wrong += bad
            for key in [k for k in made if k[0] == kind]:
                made.pop(key).unlink()
    return int(bool(wrong))


if __name__ == "__main__":
    raise SystemExit(main())
