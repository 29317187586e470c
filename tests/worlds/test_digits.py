"""The image world: sizes, scale, and which labels are wrong."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from trainlore.worlds.digits import split, spoiled


def pixels(table: pa.Table) -> np.ndarray:
    return table["features"].combine_chunks().flatten().to_numpy().reshape(-1, 64)


def test_the_parts_are_all_rows_once_and_scaled():
    from sklearn.datasets import load_digits

    made = split()
    assert {k: v.num_rows for k, v in made.items()} == {"train": 1000, "test": 400, "spare": 397, "noisy": 1000}
    rows = np.concatenate([pixels(made[k]) for k in ("train", "test", "spare")])
    labels = np.concatenate([made["train"]["label"], made["test"]["label"], made["spare"]["truth"]])
    whole, truth = load_digits(return_X_y=True)
    ours = sorted(map(tuple, np.column_stack([rows * 16, labels]).tolist()))
    assert ours == sorted(map(tuple, np.column_stack([whole, truth]).tolist()))
    assert rows.dtype == np.float32 and rows.min() == 0 and rows.max() == 1
    assert made["train"].schema.field("features").type == pa.list_(pa.float32(), 64)
    assert "label" not in made["spare"].column_names
    assert np.bincount(made["train"]["label"]).min() > 80  # every class is there


def test_a_fifth_of_the_noisy_labels_is_wrong():
    made = split()
    label, truth = (made["noisy"][c].to_numpy() for c in ("label", "truth"))
    assert (label != truth).sum() == 200
    assert (truth == made["train"]["label"].to_numpy()).all()
    assert (pixels(made["noisy"]) == pixels(made["train"])).all()
    assert set(label) == set(range(10))


def test_wrong_labels_are_any_other_class():
    truth = np.full(3000, 3)
    label = spoiled(truth, 0.9, seed=1)
    counts = np.bincount(label, minlength=10)
    assert counts[3] == 300 and np.delete(counts, 3).min() > 240 and (truth == 3).all()


def test_every_call_gives_the_same():
    assert all(a.equals(b) for a, b in zip(split().values(), split().values(), strict=True))
