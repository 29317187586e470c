"""Peak memory of selectors on a million made-up rows, each in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py --rows 100000 --only dsir near_duplicates

The rows lie in a memory-mapped Arrow file, as rows read from a file do: texts of 30 to 90 words of a Zipf vocabulary, one
in twenty a copy or near copy of another; or embeddings of 384 numbers. The peak counts the pages of the file that are in
memory, which the system takes back when it needs them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

LIMIT, WIDE = 4.0, 384  # GiB, numbers of an embedding
TEXT = {
    "random_rows": {"keep": 0.1}, "exact_duplicates": {}, "near_duplicates": {}, "dsir": {"tokens": 0.1, "min_words": 40},
    "quality_rules": {}, "decontaminate": {},
}  # fmt: skip
VECTORS: dict[str, dict[str, Any]] = {"kmeans_quality": {"quality": None}}


def texts(rows: int, to: Path) -> None:
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i:x}" for i in range(50_000)])
    schema = pa.schema([("text", pa.large_string())])
    with pa.ipc.new_file(str(to), schema) as out:
        for at in range(0, rows, 8192):
            size = rng.integers(30, 91, min(8192, rows - at))
            words = vocabulary[np.minimum(rng.zipf(1.2, size.sum()) - 1, 49_999)]
            said = [" ".join(part.tolist()) for part in np.split(words, np.cumsum(size)[:-1])]
            for i in range(10, len(said), 40):
                said[i] = said[i - 10]
                if i + 20 < len(said):
                    said[i + 20] = said[i + 10] + " w0"
            out.write_batch(pa.record_batch([pa.array(said, pa.large_string())], schema))


def vectors(rows: int, to: Path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((200, WIDE), np.float32)
    schema = pa.schema([("features", pa.list_(pa.float32(), WIDE))])
    with pa.ipc.new_file(str(to), schema) as out:
        for at in range(0, rows, 8192):
            n = min(8192, rows - at)
            x = centres[rng.integers(0, 200, n)] + rng.standard_normal((n, WIDE), np.float32)
            made = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), WIDE)
            out.write_batch(pa.record_batch([made], schema))


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def one(name: str, path: str) -> None:
    """In a process of its own: the method on the rows of the file; print what it took as JSON."""
    import torch

    from trainlore.nouns import Data
    from trainlore.registry import load
    from trainlore.runs import Run

    torch.set_num_threads(1)
    data = Data(pa.ipc.open_file(pa.memory_map(path)).read_all())
    fields: dict[str, Any] = dict(TEXT.get(name) or VECTORS.get(name) or {})
    if name == "dsir":
        fields["target"] = data.take(range(500))
    if name == "decontaminate":
        fields["tests"] = (data.take(range(0, 5000, 5)),)
    held, start = peak(), time.process_time()
    kept = load(name)(**fields)(Run(0), data)
    print(json.dumps({"kept": len(kept), "seconds": time.process_time() - start, "held": held, "peak": peak()}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", help="these methods")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(*args.one)
        return 0
    wanted = [n for n in (*TEXT, *VECTORS) if not args.only or n in args.only]
    broken = 0
    print(f"{args.rows:,} rows; peak memory of a process, under {LIMIT} GiB unless the card says what it needs")
    with tempfile.TemporaryDirectory() as folder:
        files = {"text": Path(folder) / "text.arrow", "vectors": Path(folder) / "vectors.arrow"}
        for kind, make, names in (("text", texts, TEXT), ("vectors", vectors, VECTORS)):
            mine = [n for n in wanted if n in names]
            if not mine:
                continue
            make(args.rows, files[kind])
            print(f"{kind}: a file of {files[kind].stat().st_size / 2**30:.2f} GiB")
            for name in mine:
                command = [sys.executable, __file__, "--one", name, str(files[kind])]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    print(f"  {name:<22} failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
                    broken += 1
                    continue
                out = json.loads(done.stdout.splitlines()[-1])
                over = out["peak"] > LIMIT
                print(
                    f"  {name:<22} {out['peak']:5.2f} GiB ({out['held']:.2f} before it ran), {out['seconds']:6.0f} s, "
                    f"{out['kept']:,} rows kept" + ("   OVER" if over else ""),
                    flush=True,
                )
            files[kind].unlink()
    return int(bool(broken))


if __name__ == "__main__":
    raise SystemExit(main())
