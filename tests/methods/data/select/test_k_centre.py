from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.k_centre import KCentre
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def pool(n=40, d=3, seed=0):
    return Data.of({"features": np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)})


def textbook(x, count):
    """Farthest first, every distance anew."""
    chosen = [int(np.argmin([np.linalg.norm(a - x.mean(0)) for a in x]))]
    while len(chosen) < count:
        chosen.append(int(np.argmax([min(np.linalg.norm(a - x[j]) for j in chosen) for a in x])))
    return chosen


def test_choices_are_the_textbooks_and_the_column_is_their_order():
    data = pool()
    out = KCentre(keep=0.25)(data)
    want = textbook(data["features"], 10)
    assert out.ids.tolist() == sorted(want)
    assert out.ids[np.argsort(out["k_centre"])].tolist() == want
    unit = torch.nn.functional.normalize(torch.tensor(data["features"]), dim=1).numpy()
    out = KCentre(keep=0.25, metric="cosine")(data)
    assert out.ids[np.argsort(out["k_centre"])].tolist() == textbook(unit, 10)


def test_the_radius_is_at_most_twice_the_best():
    for seed in range(5):
        data = pool(12, 2, seed)
        apart = np.linalg.norm(data["features"][:, None] - data["features"][None], axis=-1)
        best = min(apart[:, list(rows)].min(1).max() for rows in combinations(range(12), 3))
        assert apart[:, KCentre(keep=0.25)(data).ids].min(1).max() <= 2 * best + 1e-6


def test_bad_input_is_named():
    for fields, source, said in (
        ({"keep": 0.0}, pool(), "keep=0.0"),
        ({"keep": 1.5}, pool(), "keep=1.5"),
        ({"column": "x"}, pool(), "'x'"),
        ({"metric": "dot"}, pool(), "metric='dot'"),
        ({}, pool().take([]), "no rows"),
        ({"column": "text"}, Data.of(["a", "b"]), "column='text' holds no vectors"),
    ):
        with pytest.raises(ValueError, match=said):
            KCentre(**fields)(source)


def measure(seed: int, arm: str) -> float:
    """The distance of the test row that is farthest from every kept row, of 20 kept from a pool drawn by the seed."""
    nouns, run = world("digits"), Run(seed)
    rows = nouns["data"].take(run.numpy("pool").permutation(len(nouns["data"]))[:200])
    kept = (KCentre if arm == "method" else RandomRows)(keep=0.1)(run, rows)
    return float(torch.cdist(torch.tensor(nouns["test"]["features"]), torch.tensor(kept["features"])).amin(1).max())


CLAIM = Claim(
    method="k_centre",
    world="digits",
    rival="random_rows",
    quantity="largest distance of an unseen row to its nearest kept row",
    better="lower",
    measure=measure,
    seeds=20,
    quick=5,
)
