from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.herding import Herding
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def pool(n=30):
    rng = np.random.default_rng(0)
    return Data.of({"features": rng.normal(size=(n, 4)).astype(np.float32), "label": np.arange(n) % 3})


def textbook(x, count):
    """iCaRL's rule, every mean anew."""
    chosen = []
    while len(chosen) < count:
        rest = [j for j in range(len(x)) if j not in chosen]
        chosen.append(min(rest, key=lambda j: np.linalg.norm(x.mean(0) - x[[*chosen, j]].mean(0))))
    return chosen


def test_choices_are_the_textbooks_and_the_column_is_their_order():
    data = pool()
    out = Herding(keep=0.3)(data)
    assert out.ids[np.argsort(out["herding"])].tolist() == textbook(data["features"], 9)
    unit = data["features"] / np.linalg.norm(data["features"], axis=1, keepdims=True)
    assert sorted(textbook(unit, 9)) == Herding(keep=0.3, metric="cosine")(data).ids.tolist()


def test_groups_keep_their_share_and_their_own_mean():
    data = pool().take([*range(0, 30, 3), *range(1, 13, 3), *range(2, 9, 3)])  # 10, 4 and 3 rows of each
    out = Herding(keep=0.3, by="label")(data)
    assert np.bincount(out["label"]).tolist() == [3, 1, 1]  # of 5: 2.94, 1.18 and 0.88
    assert out.ids[out["label"] == 0].tolist() == sorted(data.ids[textbook(data["features"][:10], 3)].tolist())
    assert len(Herding(keep=1.0, by="label")(data)) == 17


def test_bad_input_is_named():
    for fields, source, said in (
        ({"keep": 0.0}, pool(), "keep=0.0"),
        ({"by": "kind"}, pool(), "'kind'"),
        ({"by": "name"}, pool().with_(name=["a"] * 29 + [None]), "no domain in 1 row"),
        ({"metric": "dot"}, pool(), "metric='dot'"),
        ({}, pool().take([]), "no rows"),
    ):
        with pytest.raises(ValueError, match=said):
            Herding(**fields)(source)


def measure(seed: int, arm: str) -> float:
    """Distance of the mean of 20 rows, kept of a pool drawn by the seed, from the mean of unseen rows."""
    nouns, run = world("digits"), Run(seed)
    rows = nouns["data"].take(run.numpy("pool").permutation(len(nouns["data"]))[:200])
    kept = (Herding if arm == "method" else RandomRows)(keep=0.1)(run, rows)
    return float(np.linalg.norm(kept["features"].mean(0) - nouns["test"]["features"].mean(0)))


CLAIM = Claim(
    method="herding",
    world="digits",
    rival="random_rows",
    quantity="distance of the kept rows' mean from the mean of unseen rows",
    better="lower",
    measure=measure,
    seeds=20,
    quick=5,
)
