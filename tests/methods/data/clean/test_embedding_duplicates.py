"""Embedding duplicates: leaders by hand, the law that none goes for one that is gone, and odd rows."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.clean.embedding_duplicates import EmbeddingDuplicates, leaders, same
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def by_hand(x, threshold):
    kept = []
    for j in range(len(x)):
        if all(x[i] @ x[j] < threshold for i in kept):
            kept.append(j)
    return kept


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_leaders_are_those_of_a_loop(block):
    rng = np.random.default_rng(block)
    x = rng.normal(size=(150, 3))  # in three dimensions many are alike, in chains
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    leader, cosine = leaders(torch.tensor(x, dtype=torch.float32), 0.9, block)
    kept = by_hand(x, 0.9)
    assert np.flatnonzero(leader < 0).tolist() == kept and 10 < len(kept) < 100
    for j in np.flatnonzero(leader >= 0):
        assert leader[j] in kept and leader[j] < j and cosine[j] == pytest.approx(x[leader[j]] @ x[j], abs=1e-6)
    assert (cosine[leader >= 0] >= 0.9).all() and np.isnan(cosine[leader < 0]).all()


def test_same_is_the_textbook_s():
    x = np.random.default_rng(0).integers(0, 3, (60, 2)).astype(np.float32)
    assert same(x).tolist() == [x.tolist().index(r) for r in x.tolist()]


@pytest.mark.parametrize("first", ["far", "near", "table"])
def test_each_dropped_row_is_alike_the_kept_row_it_names(first):
    data = Data.of(world("digits")["data"].arrow())  # a table of its own, so that what is dropped was looked at
    data = data.take(np.random.default_rng(0).permutation(len(data)))
    kept = EmbeddingDuplicates(threshold=0.96, clusters=3, first=first)(data)
    gone = kept.dropped()
    assert 0 < len(gone) < 300 and (kept["alike"] == -1).all() and np.isnan(kept["alike_cosine"]).all()
    x = dict(zip(data.ids.tolist(), data["features"], strict=True))
    for i, j, c in zip(gone.ids.tolist(), gone["alike"].tolist(), gone["alike_cosine"], strict=True):
        a, b = x[i], x[j]
        assert j in set(kept.ids) and c == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
        assert c >= 0.96


def test_the_far_row_of_a_pair_stays():
    angle = np.array([0.0, 0.1, 0.2, 0.75, 0.85])
    data = Data.of({"features": np.stack([np.cos(angle), np.sin(angle)], 1)})
    kept = {
        f: EmbeddingDuplicates(threshold=np.cos(0.11), first=f)(data).ids.tolist() for f in ("far", "near", "table")
    }
    assert kept["table"] == [0, 2, 3] and 4 in kept["far"] and 0 in kept["far"] and 2 in kept["near"]


def test_odd_rows():
    alike = Data.of({"features": np.tile(np.float32([3, 4]), (5000, 1))})
    assert EmbeddingDuplicates()(alike).ids.tolist() == [0]
    assert set(EmbeddingDuplicates()(alike).dropped()["alike"]) == {0}
    assert len(EmbeddingDuplicates()(Data.of({"features": np.zeros((3, 2), np.float32)}))) == 3
    assert len(EmbeddingDuplicates(threshold=2.0)(alike)) == 5000
    x = np.ones((4, 2), np.float32)
    x[2, 0] = np.inf
    for column, fields, said in (
        (x, {}, "not finite for 1 of 4"),
        (np.ones((4, 2)), {"threshold": 0.0}, "threshold=0"),
        (np.ones((4, 2)), {"clusters": 0}, "clusters=0"),
        (np.ones((4, 2)), {"first": "best"}, "first='best'"),
        (np.ones(4), {}, "no vectors"),
    ):
        with pytest.raises(ValueError, match=said):
            EmbeddingDuplicates(**fields)(Data.of({"features": column}))


def measure(seed: int, arm: str) -> float:
    """The share of rows left whose shaky copy is left as well."""
    data, rng = world("digits")["data"], np.random.default_rng(seed)
    x, pick = data["features"], rng.choice(len(data), 150, replace=False)
    shaky = x[pick] + rng.normal(size=(150, x.shape[1])).astype(np.float32) * 0.08 * x.std()
    data = Data.of({"features": np.concatenate([x, shaky])}).take(rng.permutation(len(x) + 150))
    kept = EmbeddingDuplicates(threshold=0.98, clusters=4)(Run(seed), data)
    if arm != "method":  # as many rows, at random
        kept = data.take(rng.permutation(len(data))[: len(kept)])
    left = set(kept.ids.tolist())
    return sum(len(x) + k in left and i in left for k, i in enumerate(pick.tolist())) / len(left)


CLAIM = Claim(
    method="embedding_duplicates",
    world="digits",
    rival="random_rows",
    quantity="share of near copies among the rows left",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
