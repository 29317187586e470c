from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.active.active_learning import ActiveLearning
from trainlore.methods.data.active.bald import BALD
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Model
from trainlore.primitives.uncertainty import dropout_shares
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world


def test_the_score_is_the_entropy_of_the_mean_less_the_mean_entropy():
    at = world("digits")
    got = BALD(model=at["teacher"], dropout=0.3, draws=4, count=397)(Run(5), at["spare"])
    shares = dropout_shares(Run(5), at["teacher"], at["spare"], 4, 0.3).numpy()
    for n in (0, 17, 396):
        mean = shares[:, n].mean(0)
        wanted = -(mean * np.log(mean)).sum() + np.mean([(p * np.log(p)).sum() for p in shares[:, n]])
        assert got["bald"][n] == pytest.approx(wanted, rel=1e-9)
    few = BALD(model=at["teacher"], dropout=0.3, draws=4, count=5)(Run(5), at["spare"])
    assert few.ids.tolist() == sorted(np.argsort(-got["bald"], kind="stable")[:5].tolist())


def test_only_a_random_part_of_the_pool_is_looked_at():
    at, seen = world("digits"), []

    class Watched(Run):
        def infer(self, model, rows, *args, **kw):
            seen.append(len(rows))
            return super().infer(model, rows, *args, **kw)

    got = BALD(model=at["model"], dropout=0.3, draws=3, count=5, rows=50)(Watched(5), at["spare"])
    assert seen == [50] * 3 and len(got) == 5
    other = BALD(model=at["model"], dropout=0.3, draws=3, count=5, rows=50)(Run(6), at["spare"])
    assert got.ids.tolist() != other.ids.tolist()


def test_bad_input_is_named():
    at = world("digits")
    for fields, says in (
        ({}, "no model"),
        ({"model": at["model"]}, "give dropout"),
        ({"model": at["model"], "dropout": 0.2, "rows": 4}, "rows=4"),
        ({"model": at["model"], "dropout": 0.2, "draws": 1}, "draws=1"),
    ):
        with pytest.raises(ValueError, match=says):
            BALD(**fields)(at["spare"])
    broken = at["spare"].with_(features=np.full((397, 64), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite for 397 of 397"):
        BALD(model=at["model"], dropout=0.2, draws=2)(broken)


def measure(seed: int, arm: str) -> float:
    """Test accuracy with 40 labels: 20 at random, then 2 rounds of 10."""
    run, rows = Run(seed), data("digits/train")
    order = run.numpy("claim").permutation(len(rows))
    with run.global_rng("net"):
        layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.25), torch.nn.Linear(64, 10)
        net = torch.nn.Sequential(*layers)
    picker = BALD(draws=10) if arm == "method" else RandomRows()
    loop = ActiveLearning(pool=rows.take(order[20:]), acquire=picker, rounds=2, steps=150, lr=3e-3)
    return Accuracy()(run, loop(run, Model(net), rows.take(order[:20])), data("digits/test")).value


CLAIM = Claim(
    method="bald",
    world="digits",
    rival="as many random rows",
    quantity="test accuracy with 40 labels, 20 of them asked for",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
