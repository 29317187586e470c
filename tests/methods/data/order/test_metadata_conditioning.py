"""MeCo: the prefix, the labels on it, and the cooldown."""

import numpy as np
import torch

from trainlore.methods.data.order.metadata_conditioning import prepend


def by_hand(row, label, prefix, keep, width):
    """One row as lists: what stays in front, the prefix, the rest, padding."""
    ids = row[:keep] + prefix + row[keep:]
    told = [-100] * (keep + len(prefix)) + label[keep:]
    gap = width - len(ids)
    return ids + [0] * gap, told + [-100] * gap, [1] * len(ids) + [0] * gap


def test_rows_are_as_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(30):
        b, t, p = rng.integers(1, 5), rng.integers(2, 8), rng.integers(1, 5)
        length, size, keep = rng.integers(1, t + 1, b), rng.integers(0, p + 1, b), rng.integers(0, 2, b)
        ids = rng.integers(1, 90, (b, t)) * (np.arange(t) < length[:, None])
        labels = np.where(np.arange(t) < length[:, None], np.where(rng.random((b, t)) < 0.2, -100, ids), -100)
        prefix = rng.integers(1, 90, (b, p))
        got = prepend(*(torch.from_numpy(x) for x in (ids, labels, (ids > 0).astype(int), prefix, size, keep)))
        for i in range(b):
            n = length[i]
            want = by_hand(
                ids[i, :n].tolist(), labels[i, :n].tolist(), prefix[i, : size[i]].tolist(), keep[i], t + size.max()
            )
            mask = np.array(want[2], bool)
            assert got[2][i].tolist() == want[2] and got[1][i].tolist() == want[1]
            assert (got[0][i].numpy()[mask] == np.array(want[0])[mask]).all()
