"""`near_duplicates` against rensa (Rust) and datasketch: rows a second, planted copies found, rows dropped wrongly.

    python benchmarks/near_duplicates.py                 # those that are not installed are left out with a sentence
    python benchmarks/near_duplicates.py --rows 20000 --words 200

One process and one thread each; seconds are those of the CPU, so that a busy machine does not matter. Rows are made up; a fifth of
them are copies of others with 0.5 to 2.5% of their words replaced. All sides compare sets of runs of five words with
112 hashes in 14 bands at a threshold of 0.8, and start from the texts. A copy counts as found when it or its original
is dropped; a drop is wrong when no other row has a true overlap of 0.8 with it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ["RAYON_NUM_THREADS"] = "1"  # read by rensa when it is imported

import numpy as np

from trainlore.methods.data.clean.near_duplicates import NearDuplicates
from trainlore.nouns import Data
from trainlore.primitives import minhash

THRESHOLD, WORDS, BANDS, HASHES = 0.8, 5, 14, 8


def planted(rows: int, words: int) -> tuple[list[str], np.ndarray]:
    """Texts in random order, and which pairs (K, 2) are an original and its copy."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i:x}" for i in range(50_000)])
    first = np.minimum(rng.zipf(1.2, (rows - rows // 5, words)) - 1, 49_999)
    copied = rng.choice(len(first), rows // 5, replace=False)
    second = first[copied]
    changed = rng.random(second.shape) < rng.uniform(0.005, 0.025, (len(second), 1))
    second = np.where(changed, rng.integers(0, 50_000, second.shape), second)
    order = rng.permutation(rows)
    place = np.argsort(order)
    texts = [" ".join(vocabulary[row].tolist()) for row in np.concatenate([first, second])[order]]
    return texts, np.stack([place[copied], place[len(first) + np.arange(len(copied))]], 1)


def runs(text: str) -> list[str]:
    said = text.split()
    return [" ".join(said[i : i + WORDS]) for i in range(len(said) - WORDS + 1)]


def ours(texts: list[str]) -> np.ndarray:
    """Which rows are dropped, bool (N,)."""
    kept = NearDuplicates(threshold=THRESHOLD, words=WORDS, bands=BANDS, hashes=HASHES)(Data.of(texts))
    return ~np.isin(np.arange(len(texts)), kept.ids)


def rensa_full(texts: list[str]) -> np.ndarray:
    """Full-set sketches, candidates checked by the sketches."""
    from rensa import RMinHashDeduplicator

    dedup = RMinHashDeduplicator(threshold=THRESHOLD, num_perm=BANDS * HASHES, use_lsh=True, num_bands=BANDS)
    return ~np.array(dedup.add_pairs([(str(i), runs(t)) for i, t in enumerate(texts)]))


def rensa_rho(texts: list[str]) -> np.ndarray:
    """The pipeline of its own benchmark: sampled runs, 128 hashes in 8 bands. It flags originals too: the later of two is taken."""
    from rensa import RMinHash, RMinHashLSH

    matrix = RMinHash.digest_matrix_from_token_sets_rho([runs(t) for t in texts], 128, 42)
    lsh = RMinHashLSH(threshold=THRESHOLD, num_perm=128, num_bands=8)
    return np.array(lsh.query_duplicate_flags_matrix_one_shot(matrix), bool)


def rensa_sketches(texts: list[str]) -> np.ndarray:
    """Ours with rensa's full-set sketches in the place of our signatures: what a change would bring."""
    from rensa import RMinHash

    def signatures(hashed: np.ndarray, offsets: np.ndarray, mult: np.ndarray, add: np.ndarray) -> np.ndarray:
        made = RMinHash.digest_matrix_from_flat_token_hashes(hashed.tolist(), offsets.tolist(), len(mult), 42)
        return np.array(made.to_rows(), np.uint32)

    real, minhash.signatures = minhash.signatures, signatures
    try:
        return ours(texts)
    finally:
        minhash.signatures = real


def datasketch(texts: list[str]) -> np.ndarray:
    """Its sketches and index, each row asked before it is put in; candidates checked by the sketches."""
    from datasketch import MinHash, MinHashLSH

    index, held = MinHashLSH(num_perm=BANDS * HASHES, params=(BANDS, HASHES)), {}
    dropped = np.zeros(len(texts), bool)
    for i, text in enumerate(texts):
        sketch = MinHash(num_perm=BANDS * HASHES)
        sketch.update_batch([r.encode() for r in runs(text)])
        dropped[i] = any(held[j].jaccard(sketch) >= THRESHOLD for j in index.query(sketch))
        if not dropped[i]:
            index.insert(i, sketch)
            held[i] = sketch
    return dropped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000, help="made-up texts")
    parser.add_argument("--words", type=int, default=200, help="words of a text")
    parser.add_argument("--times", type=int, default=3, help="runs of each; the fastest counts")
    args = parser.parse_args()
    texts, pairs = planted(args.rows, args.words)
    hashed, offsets = minhash.shingles(texts, WORDS)
    true = minhash.jaccard(hashed, offsets, pairs)
    alike = pairs[true >= THRESHOLD]
    bands = [(true >= lo) & (true < hi) for lo, hi in ((0.8, 0.85), (0.85, 0.9), (0.9, 1.01))]
    size = sum(map(len, texts)) / 1e6
    print(
        f"{len(texts):,} texts of {args.words} words ({size:.0f} MB), {len(alike):,} copies with an overlap of 0.8 or more"
    )
    print(f"{'':<28}{'rows/s':>10}{'found':>9}{'.8-.85':>9}{'.85-.9':>9}{'.9-1':>9}{'wrong drops':>14}")
    tools: list[tuple[str, str, Callable[[list[str]], np.ndarray]]] = [
        ("trainlore", "", ours),
        ("rensa, full set", "rensa", rensa_full),
        ("rensa, rho", "rensa", rensa_rho),
        ("trainlore with its sketches", "rensa", rensa_sketches),
        ("datasketch", "datasketch", datasketch),
    ]
    for name, package, run in tools:
        try:
            if package:
                __import__(package)
        except ImportError:
            print(f"{name:<28}  is not measured: pip install {package}")
            continue
        times, dropped = [], np.zeros(0)
        for _ in range(1 if run is datasketch else args.times):
            start = time.process_time()
            dropped = run(texts)
            times.append(time.process_time() - start)
        found = [dropped[pairs[b]].any(1).mean() for b in (true >= THRESHOLD, *bands)]
        wrong = int(dropped.sum() - dropped[np.unique(alike)].sum())
        shown = "".join(f"{f:>9.4f}" for f in found)
        print(f"{name:<28}{len(texts) / min(times):>10,.0f}{shown}{wrong:>14,}")


if __name__ == "__main__":
    main()
