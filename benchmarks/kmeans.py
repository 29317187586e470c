"""Selection by `kmeans_quality` with our k-means and with scikit-learn's in its place: seconds, and how tight the clusters are.

    python benchmarks/kmeans.py                       # 200,000 rows of 384 numbers, 64 clusters
    python benchmarks/kmeans.py --rows 20000 --clusters 512

One process and one thread each, in turn, the whole selection from embeddings to the kept rows. Rows lie around 500 centres
of unlike sizes, with noise of which a part is shared between dimensions, as of embeddings. scikit-learn runs as the method
called it before: KMeans(clusters, n_init=1). Seconds are those of the CPU, so that a busy machine does not matter; the
tightness is the mean squared distance of a row to the mean of its cluster, in float64.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(threads, "1")

import numpy as np
import torch

from trainlore.methods.data.select import kmeans_quality
from trainlore.nouns import Data

Clustered = tuple[np.ndarray, np.ndarray]


def points(rows: int, dimensions: int) -> np.ndarray:
    """Rows of length 1, float32 (rows, dimensions)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(500, dimensions)).astype(np.float32)
    shared = rng.normal(size=(32, dimensions)).astype(np.float32) / 6
    x = centres[np.minimum(rng.zipf(1.3, rows) - 1, 499)]
    x += rng.normal(size=(rows, 32)).astype(np.float32) @ shared + rng.standard_normal((rows, dimensions), np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def scikit_learn(x: np.ndarray, clusters: int, rng: np.random.Generator) -> Clustered:
    from sklearn.cluster import KMeans

    made = KMeans(clusters, n_init=1, random_state=int(rng.integers(2**31))).fit(x)
    return made.labels_.astype(np.int64), made.cluster_centers_


def minibatch(x: np.ndarray, clusters: int, rng: np.random.Generator) -> Clustered:
    from sklearn.cluster import MiniBatchKMeans

    made = MiniBatchKMeans(clusters, n_init=1, batch_size=4096, random_state=int(rng.integers(2**31))).fit(x)
    return made.labels_.astype(np.int64), made.cluster_centers_


def faiss(x: np.ndarray, clusters: int, rng: np.random.Generator) -> Clustered:
    import faiss as library

    library.omp_set_num_threads(1)
    made = library.Kmeans(x.shape[1], clusters, niter=25, seed=int(rng.integers(2**31)))
    made.train(x)
    return made.index.search(x, 1)[1][:, 0], made.centroids


def selected(data: Data, clusters: int, by: Callable[..., Clustered], seed: int) -> tuple[float, float]:
    """CPU seconds of the selection, and the tightness of its clusters."""
    from trainlore.runs import Run

    labels: list[np.ndarray] = []

    def seen(x: np.ndarray, k: int, rng: np.random.Generator) -> Clustered:
        found = by(x, k, rng)
        labels.append(found[0])
        return found

    ours, kmeans_quality.k_means = kmeans_quality.k_means, seen
    try:
        start = time.process_time()
        kept = kmeans_quality.KMeansQuality(clusters=clusters, quality=None, keep=0.1)(Run(seed), data)
        seconds = time.process_time() - start
    finally:
        kmeans_quality.k_means = ours
    assert len(kept) == round(0.1 * len(data))
    return seconds, tightness(data["features"], labels[0], clusters)


def tightness(x: np.ndarray, label: np.ndarray, clusters: int) -> float:
    size = np.maximum(np.bincount(label, minlength=clusters), 1)[:, None]
    sums = np.zeros((clusters, x.shape[1]))
    np.add.at(sums, label, x)
    return float(np.square(x, dtype=np.float64).sum() - (sums**2 / size).sum()) / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=384)
    parser.add_argument("--clusters", type=int, default=64)
    parser.add_argument("--times", type=int, default=3, help="seeds; medians are printed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = Data.of({"features": points(args.rows, args.dimensions)})
    sides = {
        "ours": kmeans_quality.k_means, "scikit-learn": scikit_learn, "scikit-learn, mini-batches": minibatch, "faiss": faiss,
    }  # fmt: skip
    found: dict[str, list[tuple[float, float]]] = {}
    missing = []
    for seed in range(args.times):
        for name, by in sides.items():
            try:
                found.setdefault(name, []).append(selected(data, args.clusters, by, seed))
            except ImportError:
                missing.append(name)
    print(f"{args.rows:,} rows of {args.dimensions}, {args.clusters} clusters, {args.times} seeds; medians")
    for name in sides:
        if name in missing:
            print(f"  {name:<27} is not installed, so it was not measured: pip install faiss-cpu")
            continue
        seconds, loose = (statistics.median(v) for v in zip(*found[name], strict=True))
        apart = statistics.median(a[0] / b[0] for a, b in zip(found[name], found["ours"], strict=True))
        than = statistics.median(a[1] / b[1] for a, b in zip(found[name], found["ours"], strict=True))
        print(f"  {name:<27} {seconds:7.2f} s  {apart:6.1f} x ours   squared distance {loose:.5f}, {than:.4f} of ours")


if __name__ == "__main__":
    main()
