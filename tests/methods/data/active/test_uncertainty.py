from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.active.active_learning import ActiveLearning
from trainlore.methods.data.active.uncertainty import Uncertainty
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world

SHARES = [[0.5, 0.5, 0.0], [0.4, 0.3, 0.3], [0.8, 0.1, 0.1], [1.0, 0.0, 0.0], [0.6, 0.4, 0.0]]


def oracle_of(shares):
    """A pool whose features are log shares, and the network that reads them as they are."""
    pool = Data.of({"features": np.log(np.maximum(shares, 1e-30)).astype(np.float32)})
    return pool, Model(torch.nn.Identity(), "classifier")


@pytest.mark.parametrize(
    "by, wanted, score",
    [
        ("entropy", [0, 1], [math.log(2), -0.4 * math.log(0.4) - 0.6 * math.log(0.3)]),
        ("margin", [0, 1], [1.0, 0.9]),
        ("least_confidence", [0, 1], [0.5, 0.6]),
    ],
)
def test_the_least_sure_rows_are_picked_with_their_scores(by, wanted, score):
    pool, model = oracle_of(SHARES)
    got = Uncertainty(model=model, by=by, count=2)(Run(0), pool)
    assert got.ids.tolist() == wanted and got["uncertainty"].tolist() == pytest.approx(score, abs=1e-6)


def test_the_measures_differ_where_they_should():
    pool, model = oracle_of([[0.5, 0.5, 0.0], [0.34, 0.33, 0.33], [0.45, 0.28, 0.27]])
    first = {by: Uncertainty(model=model, by=by, count=1)(Run(0), pool).ids[0] for by in ("entropy", "margin")}
    assert first == {"entropy": 1, "margin": 0}


def test_bad_input_is_named():
    at = world("digits")
    for fields, says in (
        ({}, "no model"),
        ({"model": at["model"], "by": "doubt"}, "by='doubt'"),
        ({"model": at["model"], "count": 0}, "count=0"),
        ({"model": at["model"], "count": 398}, "1 to 397"),
        ({"model": Model(torch.nn.Linear(64, 1), "regressor")}, "regressor"),
    ):
        with pytest.raises(ValueError, match=says):
            Uncertainty(**fields)(at["spare"])
    broken = at["spare"].with_(features=np.full((397, 64), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite for 397 of 397"):
        Uncertainty(model=at["model"])(broken)


def measure(seed: int, arm: str) -> float:
    """Test accuracy with 60 labels: 20 at random, then 4 rounds of 10."""
    run, rows = Run(seed), data("digits/train")
    order = run.numpy("claim").permutation(len(rows))
    with run.global_rng("net"):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    loop = ActiveLearning(
        pool=rows.take(order[20:]),
        acquire=Uncertainty() if arm == "method" else RandomRows(),
        rounds=4,
        steps=60,
        lr=3e-3,
    )
    return Accuracy()(run, loop(run, Model(net), rows.take(order[:20])), data("digits/test")).value


CLAIM = Claim(
    method="uncertainty",
    world="digits",
    rival="as many random rows",
    quantity="test accuracy with 60 labels, 40 of them asked for",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
