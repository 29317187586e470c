from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.facility_location import FacilityLocation
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.primitives.neighbours import nearest
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def pool(n=40):
    return Data.of({"features": np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)})


def textbook(similar, count):
    """The greedy, every value anew; similar: (N, N)."""
    chosen = []
    while len(chosen) < count:
        rest = [j for j in range(len(similar)) if j not in chosen]
        chosen.append(max(rest, key=lambda j: round(np.maximum(similar[:, [*chosen, j]].max(1), 0).sum(), 5)))
    return chosen


@pytest.mark.parametrize("mode", ["lazy", "exact"])
def test_choices_are_the_textbooks_and_the_column_is_their_order(mode):
    data = pool()
    x = data["features"].astype(np.float64)
    out = FacilityLocation(keep=0.25, mode=mode)(data)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert out.ids[np.argsort(out["facility_location"])].tolist() == textbook(unit @ unit.T, 10)
    apart = 100 - np.linalg.norm(
        x[:, None] - x[None], axis=-1
    )  # the order is that of any constant beyond the distances
    out = FacilityLocation(keep=0.2, mode=mode, metric="euclidean")(data)
    assert out.ids[np.argsort(out["facility_location"])].tolist() == textbook(apart, 8)


def test_one_of_each_crowd_the_largest_first_whatever_is_covered():
    crowd = np.repeat(np.arange(4), [40, 30, 20, 10])
    x = np.eye(4, 6, dtype=np.float32)[crowd] + 0.02 * np.random.default_rng(0).normal(size=(100, 6))
    for fields in ({}, {"cover": 50}, {"mode": "stochastic"}):
        out = FacilityLocation(keep=0.04, **fields)(Data.of({"features": x.astype(np.float32)}))
        assert sorted(crowd[out.ids].tolist()) == [0, 1, 2, 3]
    assert crowd[FacilityLocation(keep=0.01, cover=60)(Data.of({"features": x.astype(np.float32)})).ids] == [0]


def test_bad_input_is_named():
    for fields, said in (({"keep": 2.0}, "keep=2.0"), ({"cover": 0}, "cover=0"), ({"metric": "dot"}, "metric='dot'")):
        with pytest.raises(ValueError, match=said):
            FacilityLocation(**fields)(pool())
    with pytest.raises(ValueError, match="no rows"):
        FacilityLocation()(pool().take([]))


def measure(seed: int, arm: str) -> float:
    """Accuracy of the nearest of 20 rows kept from a pool drawn by the seed."""
    nouns, run = world("digits"), Run(seed)
    rows = nouns["data"].take(run.numpy("pool").permutation(len(nouns["data"]))[:200])
    kept = (FacilityLocation if arm == "method" else RandomRows)(keep=0.1)(run, rows)
    found = nearest(torch.tensor(nouns["test"]["features"]), 1, torch.tensor(kept["features"]))[1][:, 0].numpy()
    return float((kept["label"][found] == nouns["test"]["label"]).mean())


CLAIM = Claim(
    method="facility_location",
    world="digits",
    rival="random_rows",
    quantity="accuracy of the nearest kept row",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
