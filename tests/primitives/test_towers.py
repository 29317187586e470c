from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.nouns import Data
from trainlore.primitives.ngrams import Hasher
from trainlore.primitives.towers import Reader, Towers, contrastive, optimizers


def test_the_contrastive_loss_is_the_textbooks():
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.nn.functional.normalize(torch.randn(4, 3, generator=rng, dtype=torch.float64), dim=1) for _ in "ab")
    c, total = 1 / 0.07, 0.0
    for i in range(4):
        row = [c * float(a[i] @ b[j]) for j in range(4)]
        column = [c * float(a[j] @ b[i]) for j in range(4)]
        total -= row[i] - np.log(np.exp(row).sum()) + column[i] - np.log(np.exp(column).sum())
    assert contrastive(a, b, torch.tensor(c)).item() == pytest.approx(total / 8)
    same = torch.ones(5, 1)
    assert contrastive(same, same, torch.tensor(c)).item() == pytest.approx(np.log(5))  # nothing told apart


DATA = Data.of(
    {
        "text": ["a b a", "", "c"],
        "label": [7, 0, 52],
        "x": np.arange(6, dtype=np.float32).reshape(3, 2),
        "n": [0.5, 1, 2],
    }
)


def test_columns_are_read_and_bags_hold_the_n_grams_of_each_row():
    start, ids, share, at, label, ones, x, n = Reader(("text", "label", "x", "n"), 50)(DATA)
    grams = next(Hasher(2, 50).grams(DATA.text()))
    for i, (bag, part) in enumerate(
        zip(torch.tensor_split(ids, start[1:]), torch.tensor_split(share, start[1:]), strict=True)
    ):
        want = np.bincount(grams.bucket[grams.row == i], minlength=50)
        assert bag.tolist() == np.flatnonzero(want).tolist()
        assert part.tolist() == pytest.approx((want[want > 0] / max(1, want.sum())).tolist())
    assert (at.tolist(), label.tolist(), ones.tolist()) == ([0, 1, 2], [7, 0, 2], [1, 1, 1])
    assert torch.equal(x, torch.tensor(DATA["x"])) and n.tolist() == [[0.5], [1.0], [2.0]]
    forms = Reader(("text", "label", "x", "n"), 50).forms(DATA, "me")
    assert forms == [("text", 0), ("labels", 0), ("numbers", 2), ("numbers", 1)]
    with pytest.raises(ValueError, match="'lists' holds tokens; me reads"):
        Reader(("lists",), 50).forms(Data.of({"lists": [[1], [2, 3]]}), "me")


def test_a_bag_is_the_mean_of_its_vectors_and_one_step_moves_no_other():
    read = Reader(("text",), 50)
    net = Towers([0], 50, 4)
    given, grams = read(DATA), next(Hasher(2, 50).grams(DATA.text()))
    table = net.first[0].weight.detach().clone()
    mine = [table[torch.from_numpy(grams.bucket[grams.row == i])] for i in range(3)]
    bags = [m.mean(0) if len(m) else torch.zeros(4) for m in mine]
    out = net(*given)
    assert torch.allclose(out, net.rest[0](torch.stack(bags))[:, 0], atol=1e-6)
    out.sum().backward()
    for optimizer in optimizers(net, 0.1):
        optimizer.step()
    moved = (net.first[0].weight != table).any(1).nonzero()[:, 0]
    assert set(moved.tolist()) <= set(given[1].tolist()) and len(moved)
    pair = Towers([2, 0], 50, 4)(*Reader(("x", "label"), 50)(DATA))
    assert pair.shape == (3, 2, 4) and torch.allclose(pair.norm(dim=-1), torch.ones(3, 2))
