"""DSIR's hashing and scoring against the authors' package `data-selection`: the same top rows, rows a second, memory.

    python benchmarks/dsir.py                       # ours alone when the package is not installed
    python benchmarks/dsir.py --rows 20000 --memory-rows 1000000

One process each. Raw rows are docstrings of the installed packages, the target those of one package. Both sides fit on all
raw rows and score all of them. The package also reads and writes files, as it must; its progress bars are off. Seconds are
those of the CPU, so that a busy machine does not matter.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from trainlore.methods.data.select.dsir import DSIR, log_ratio
from trainlore.nouns import Data
from trainlore.primitives.ngrams import Hasher


def docstrings(most: int) -> tuple[list[str], list[str]]:
    """Docstrings of the installed packages: raw rows, and a target from NumPy that is not among them."""
    import ast
    import warnings

    root = Path(sysconfig.get_paths()["purelib"])
    raw, target = [], []
    for path in sorted(root.rglob("*.py"), key=lambda p: hash_of(str(p.relative_to(root)))):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        kinds = ast.Module, ast.ClassDef, ast.FunctionDef
        found = [d for n in ast.walk(tree) if isinstance(n, kinds) and (d := ast.get_docstring(n))]
        (target if path.parts[len(root.parts)] == "numpy" else raw).extend(encodable(found))
        if len(raw) >= most and len(target) >= 500:
            break
    return raw[:most], target[:500]


def hash_of(name: str) -> bytes:
    import hashlib

    return hashlib.sha256(name.encode()).digest()


def encodable(texts: list[str]) -> Iterator[str]:
    for text in texts:
        with contextlib.suppress(UnicodeEncodeError):
            text.encode()
            yield text


def ours(raw: list[str], target: list[str], hash: str) -> tuple[float, np.ndarray, np.ndarray]:
    """Seconds, log weights and words of each row."""
    start = time.process_time()
    hasher = Hasher(hash=hash)
    gain = log_ratio(hasher.counts(target), hasher.counts(raw))
    score, words = hasher.scores(raw, gain)
    return time.process_time() - start, score, words


def theirs(raw: list[str], target: list[str]) -> tuple[float, np.ndarray, np.ndarray]:
    """The same by the package, in one process."""
    from data_selection import HashedNgramDSIR

    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.jsonl" for name in ("raw", "target")}
        for name, rows in (("raw", raw), ("target", target)):
            files[name].write_text("".join(json.dumps({"text": t}) + "\n" for t in rows), encoding="utf-8")
        start = time.process_time()
        with contextlib.redirect_stderr(io.StringIO()):
            d = HashedNgramDSIR(
                [str(files["raw"])], [str(files["target"])], cache_dir=str(Path(folder) / "cache"), num_proc=1
            )
            d.fit_importance_estimator(num_tokens_to_fit="all")
            d.compute_importance_weights()
        seconds = time.process_time() - start
        return seconds, np.load(d.log_importance_weights_dir / "0.npy"), np.load(d.perexample_metadata_dir / "0.npy")


def synthetic(rows: int) -> Iterator[str]:
    """Made-up documents of 30 to 90 words of a Zipf vocabulary, one at a time."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i:x}" for i in range(50_000)])
    for at in range(0, rows, 1000):
        size = rng.integers(30, 91, min(1000, rows - at))
        words = vocabulary[np.minimum(rng.zipf(1.2, size.sum()) - 1, 49_999)]
        for part in np.split(words, np.cumsum(size)[:-1]):
            yield " ".join(part.tolist())


def memory(rows: int, hash: Literal["fast", "sha256"]) -> None:
    """In a process of its own: the method on `rows` documents held in Arrow; print seconds and peak memory as JSON."""
    documents = synthetic(rows)
    chunks = [pa.array(islice(documents, 1000), pa.large_string()) for _ in range(-(-rows // 1000))]
    data = Data.of(pa.table({"text": pa.chunked_array(chunks)}))
    pick = DSIR(target=data.take(range(500)), tokens=0.1, min_words=40, hash=hash)
    held, start = peak(), time.process_time()
    kept = pick(data)
    print(
        json.dumps(
            {"rows": rows, "kept": len(kept), "seconds": time.process_time() - start, "peak": peak(), "held": held}
        )
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="docstrings to select from")
    parser.add_argument(
        "--memory-rows", type=int, default=1_000_000, help="made-up documents of the memory run; 0 leaves it out"
    )
    parser.add_argument("--only-memory", choices=("fast", "sha256"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only_memory:
        return memory(args.memory_rows, args.only_memory)

    raw, target = docstrings(args.rows)
    size = sum(map(len, raw)) / 1e6
    print(f"{len(raw):,} docstrings ({size:.1f} MB), target {len(target)}; fit and score, CPU seconds of one process")
    found = {hash: min((ours(raw, target, hash) for _ in range(3)), key=lambda r: r[0]) for hash in ("fast", "sha256")}
    for hash, (seconds, *_) in found.items():
        print(f"  ours, {hash:<8}  {len(raw) / seconds:>10,.0f} rows/s  {size / seconds:6.1f} MB/s")
    try:
        import data_selection  # noqa: F401
    except ImportError:
        print("  data-selection is not installed, so it was not measured: pip install data-selection")
    else:
        seconds, score, words = theirs(raw, target)
        print(f"  data-selection  {len(raw) / seconds:>10,.0f} rows/s  {size / seconds:6.1f} MB/s")
        for hash, (mine, *_) in found.items():
            print(f"  ratio, {hash}: {seconds / mine:.1f} x")
        _, same_score, same_words = found["sha256"]
        k = len(raw) // 10
        top = [
            set(np.argsort(-np.where(w >= 100, s, -np.inf), kind="stable")[:k].tolist())
            for s, w in ((score, words), (same_score, same_words))
        ]
        print(
            f"  same top {k:,} rows under sha256: {len(top[0] & top[1]):,}; largest difference of a log weight {abs(score - same_score).max():.1e}"
        )
        fast = set(np.argsort(-np.where(words >= 100, found["fast"][1], -np.inf), kind="stable")[:k].tolist())
        print(f"  same top {k:,} rows under the fast hash: {len(top[0] & fast):,}")
        if top[0] != top[1] or (words != same_words).any():
            sys.exit("the rows differ from the package's: NLTK 3.10 or later is needed for equal words")
    for hash in ("fast", "sha256") if args.memory_rows else ():
        command = [sys.executable, __file__, "--only-memory", hash, "--memory-rows", str(args.memory_rows)]
        out = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"  {out['rows']:,} made-up documents, {hash}: {out['seconds']:.0f} s, peak {out['peak']:.2f} GiB ({out['held']:.2f} before it ran)"
        )


if __name__ == "__main__":
    main()
