from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from trainlore.claims import Claim
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.data.select.search_and_prune import SearchAndPrune, frechet, search, spread
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def textbook(a, b):
    """The distance with a root of the product of covariances."""
    m, n, c, d = a.mean(0), b.mean(0), np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    return ((m - n) ** 2).sum() + np.trace(c + d) - 2 * np.trace(linalg.sqrtm(c @ d)).real


def test_the_distance_is_the_textbooks_and_few_rows_do():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 6)), 2 + rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    assert frechet(spread(a), spread(b)) == pytest.approx(textbook(a, b), rel=1e-6)
    assert frechet(spread(a), spread(a)) == pytest.approx(0, abs=1e-9)
    assert frechet(spread(a[:4]), spread(b)) == pytest.approx(textbook(a[:4], b), rel=1e-4)  # covariance of rank 3
    assert frechet(spread(a[:1]), spread(b[:1])) == pytest.approx(((a[0] - b[0]) ** 2).sum())


def test_the_search_joins_what_the_target_is_made_of():
    rng = np.random.default_rng(0)
    centres = np.eye(4) * 6
    cluster = np.repeat(np.arange(4), 30)
    x = centres[cluster] + rng.normal(size=(120, 4))
    y = centres[np.repeat([1, 3], 25)] + rng.normal(size=(50, 4))
    near, alone = search(x, cluster, y, 10, Run(0).numpy("x"))
    assert sorted(near.tolist()) == [1, 3] and set(np.argsort(alone)[:2]) == {1, 3}
    assert len(search(x, cluster, y, 90, Run(0).numpy("x"))[0]) >= 3  # the budget asks for more


def pool():
    rng = np.random.default_rng(1)
    who = np.repeat(np.arange(12), 10)  # identities 0-5 in one corner, 6-11 in another
    x = 8 * np.eye(2)[(who >= 6).astype(int)] + np.repeat(rng.normal(size=(12, 2)), 10, 0) + rng.normal(size=(120, 2))
    near = 8 * np.eye(2)[0] + 1.4 * rng.normal(size=(60, 2))
    return Data.of({"features": x.astype(np.float32), "who": who}), Data.of({"features": near.astype(np.float32)})


def test_pruning_keeps_one_row_of_each_identity_and_then_the_farthest():
    data, target = pool()
    out = SearchAndPrune(target=target, group="who", clusters=4, keep=0.15)(data)
    assert set(out["who"]) <= set(range(6)) and len(out) == 18
    found = np.unique(out["who"])
    start = [int(np.flatnonzero(data["who"] == w)[0]) for w in found]
    rows, chosen, x = np.flatnonzero(np.isin(data["who"], found)), list(start), data["features"]
    while len(chosen) < 18:
        chosen.append(rows[np.argmax([min(np.linalg.norm(x[r] - x[c]) for c in chosen) for r in rows])])
    assert out.ids.tolist() == sorted(chosen)
    few = SearchAndPrune(target=target, group="who", clusters=2, keep=0.1, identities=0.5)(data)
    assert len(np.unique(few["who"])) == 3 and len(few) == 12
    assert len(SearchAndPrune(target=target, clusters=4, keep=0.15)(data)) == 18  # every row its own identity


def test_bad_input_is_named():
    data, target = pool()
    for fields, said in (
        ({"clusters": 0}, "clusters"),
        ({"identities": 0.0}, "identities"),
        ({"keep": 0.0}, "keep=0.0"),
        ({"group": "name"}, "'name'"),
        ({"target": Data.of({"features": np.ones((3, 5), np.float32)})}, "2 numbers and the `target` 5"),
        ({"keep": 0.01}, "lower identities"),
        ({"keep": 0.5, "identities": 0.1, "clusters": 2}, "raise identities"),
    ):
        with pytest.raises(ValueError, match=said):
            SearchAndPrune(**{"target": target, "group": "who", **fields})(data)
    with pytest.raises(ValueError, match=r"`target`.*no rows"):
        SearchAndPrune(target=target.take([]))(data)


def turned(rows):
    """Half of the rows, at random, with the picture turned on its side; the identity is label and side."""
    side = Run(0).numpy("side").random(len(rows)) < 0.5
    x = rows["features"].reshape(-1, 8, 8)
    x = np.where(side[:, None, None], x.transpose(0, 2, 1), x).reshape(-1, 64)
    return rows.with_(features=x, who=2 * rows["label"] + side)


def measure(seed: int, arm: str) -> float:
    """Accuracy on upright digits after training on a fifth of a pool of which half lie on their side."""
    nouns, run = world("digits", seed), Run(seed)
    data = turned(nouns["data"])
    pick = SearchAndPrune(target=nouns["spare"], group="who", clusters=10) if arm == "method" else RandomRows(keep=0.2)
    model = run.fit(nouns["model"], pick(run, data), steps=60, **HOW["digits"])
    guess = run.infer(model, nouns["test"], lambda batch, out: out.argmax(-1)).numpy()
    return float((guess == nouns["test"]["label"]).mean())


CLAIM = Claim(
    method="search_and_prune",
    world="digits",
    rival="random_rows",
    quantity="accuracy on the target after training on a fifth of the pool",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
