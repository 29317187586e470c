from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.core_set import CoreSet, middles
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def crowds(sizes=(40, 30, 20)):
    rng = np.random.default_rng(0)
    crowd = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(len(sizes), 5)[crowd] * 4 + 0.3 * rng.normal(size=(len(crowd), 5))
    return crowd, Data.of({"features": x.astype(np.float32)})


def test_middles_are_the_rows_nearest_to_each_centre():
    rng = np.random.default_rng(0)
    x, cluster, centres = rng.normal(size=(30, 3)), rng.integers(0, 4, 30), rng.normal(size=(5, 3))
    found = middles(torch.from_numpy(x), cluster, centres)
    assert len(found) == 4  # the fifth cluster has no rows
    for c, row in enumerate(found):
        mine = np.flatnonzero(cluster == c)
        assert row == mine[np.argmin(np.linalg.norm(x[mine] - centres[c], axis=1))]


def test_one_middle_of_each_cluster_and_then_the_farthest():
    crowd, data = crowds()
    out = CoreSet(keep=0.1, clusters=3)(data)
    order = out.ids[np.argsort(out["core_set"])]
    assert sorted(crowd[order[:3]].tolist()) == [0, 1, 2] and len(order) == 9
    x = data["features"] / np.linalg.norm(data["features"], axis=1, keepdims=True)
    for t in range(3, 9):
        near = np.linalg.norm(x[:, None] - x[order[:t]][None], axis=-1).min(1)
        assert near.argmax() == order[t]
    for c, row in zip(crowd[order[:3]], order[:3], strict=True):  # k-means found the crowds
        mine = np.flatnonzero(crowd == c)
        assert (
            np.linalg.norm(x[row] - x[mine].mean(0)) <= np.linalg.norm(x[mine] - x[mine].mean(0), axis=1).min() + 1e-5
        )


def test_the_task_says_which_clusters():
    crowd, data = crowds()
    out = CoreSet(keep=0.1, clusters=3, task=data.take([85, 60]))(data)
    assert set(crowd[out.ids].tolist()) == {1, 2} and len(out) == 9
    with pytest.raises(ValueError, match="keep=0.5 asks for 45 rows and 20"):
        CoreSet(keep=0.5, clusters=3, task=data.take([85]))(data)


def test_bad_input_is_named():
    _, data = crowds()
    for fields, said in (({"keep": 0.0}, "keep=0.0"), ({"clusters": 0}, "clusters=0"), ({"column": "x"}, "'x'")):
        with pytest.raises(ValueError, match=said):
            CoreSet(**fields)(data)
    assert len(CoreSet(keep=0.005)(data)) == 1


def measure(seed: int, arm: str) -> float:
    """Test accuracy after training on 15 of 300 rows drawn by the seed."""
    nouns, run = world("digits", seed), Run(seed)
    pool = nouns["data"].take(run.numpy("pool").permutation(len(nouns["data"]))[:300])
    kept = (CoreSet if arm == "method" else RandomRows)(keep=0.05)(run, pool)
    model = run.fit(nouns["model"], kept, steps=60, **HOW["digits"])
    guess = run.infer(model, nouns["test"], lambda batch, out: out.argmax(-1)).numpy()
    return float((guess == nouns["test"]["label"]).mean())


CLAIM = Claim(
    method="core_set",
    world="digits",
    rival="random_rows",
    quantity="test accuracy after training on a twentieth of the rows",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
