"""The image world: 1,797 handwritten digits of 8x8 grey values (scikit-learn's), split once and for all."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

TRAIN, TEST = 1000, 400  # the remaining 397 rows are the spare ones
NOISE = 0.2  # share of wrong labels among the noisy rows


def split() -> dict[str, pa.Table]:
    """Four tables of `features` (64 grey values from 0 to 1, float32) and what is known of each row.

    - train: 1,000 rows with `label`, in random order, so that its first n rows are a sample.
    - test: 400 rows with `label`.
    - spare: 397 rows without one; `truth` tells, for judging labellers only.
    - noisy: the rows of train, of which exactly a fifth carry a wrong `label`; `truth` is the right one.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    features, labels = (pixels[order] / 16).astype(np.float32), labels[order].astype(np.int64)
    train, test, spare = slice(0, TRAIN), slice(TRAIN, TRAIN + TEST), slice(TRAIN + TEST, None)
    return {
        "train": _table(features[train], label=labels[train]),
        "test": _table(features[test], label=labels[test]),
        "spare": _table(features[spare], truth=labels[spare]),
        "noisy": _table(features[train], label=spoiled(labels[train], NOISE, seed=0), truth=labels[train]),
    }


def spoiled(labels: np.ndarray, share: float, seed: int, classes: int = 10) -> np.ndarray:
    """Labels (N,) of which round(share * N) were replaced by one of the other classes, each as likely."""
    rng = np.random.default_rng((seed, 1))
    wrong = rng.permutation(len(labels))[: round(share * len(labels))]
    labels = labels.copy()
    labels[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return labels


def _table(features: np.ndarray, **columns: np.ndarray) -> pa.Table:
    rows = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
    return pa.table({"features": rows, **{name: pa.array(values) for name, values in columns.items()}})
