from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.active import batch_bald
from trainlore.methods.data.active.active_learning import ActiveLearning
from trainlore.methods.data.active.bald import BALD
from trainlore.methods.data.active.batch_bald import BatchBALD, greedy
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.primitives.uncertainty import dropout_shares, mutual_information
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world


def some(networks, rows, classes, seed=0):
    shares = (
        torch.rand(networks, rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 4
    )
    return shares / shares.sum(-1, keepdim=True)


def information(shares, rows):
    """What the labels of these rows together tell of the network, by listing every outcome."""
    networks, _, classes = shares.shape
    total = 0.0
    for ys in itertools.product(range(classes), repeat=len(rows)):
        under = [math.prod(float(shares[s, r, y]) for r, y in zip(rows, ys, strict=True)) for s in range(networks)]
        mean = sum(under) / networks
        total += sum(u / networks * math.log(u / mean) for u in under if u > 0)
    return total


@pytest.mark.parametrize("block", [1, 3, 64])
def test_each_row_adds_most_to_what_the_rows_before_it_tell(block, monkeypatch):
    monkeypatch.setattr(batch_bald, "BLOCK", block)
    shares = some(5, 12, 3)
    picked, gains = greedy(shares, 4, 10_000)
    for i in range(4):
        added = {
            n: information(shares, [*picked[:i], n]) - information(shares, picked[:i])
            for n in range(12)
            if n not in picked[:i]
        }
        assert picked[i] == max(added, key=added.get) and gains[i] == pytest.approx(added[picked[i]])
    assert gains == sorted(gains, reverse=True) and sum(gains) < math.log(5)


def test_a_copy_is_left_alone_where_bald_takes_it():
    shares = some(6, 8, 2, seed=3)
    alone = mutual_information(shares)
    first = int(alone.argmax())
    shares = torch.cat([shares, shares[:, [first, first]]], 1)
    assert set(mutual_information(shares).topk(3).indices.tolist()) == {first, 8, 9}
    sure = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3, dtype=torch.float64)[:, None]
    half = torch.tensor([[0.9, 0.1], [0.1, 0.9]] * 3, dtype=torch.float64)[:, None]
    picked, gains = greedy(torch.cat([sure, sure, half], 1), 3, 100)
    assert picked == [0, 2, 1] and gains[0] == pytest.approx(math.log(2)) and gains[2] == pytest.approx(0, abs=1e-12)


def test_the_method_picks_greedily_and_keeps_the_pools_order():
    at, run = world("digits"), Run(2)
    got = BatchBALD(model=at["teacher"], dropout=0.4, draws=6, count=4, outcomes=100_000)(run, at["spare"])
    shares = dropout_shares(Run(2), at["teacher"], at["spare"], 6, 0.4)
    picked, gains = greedy(shares, 4, 100_000)
    assert got.ids.tolist() == sorted(picked)
    assert dict(zip(picked, gains, strict=True)) == pytest.approx(
        dict(zip(got.ids.tolist(), got["batch_bald"], strict=True))
    )


def test_bad_input_is_named():
    at = world("digits")
    for fields, says in (({}, "no model"), ({"model": at["model"], "dropout": 0.2, "outcomes": 0}, "outcomes=0")):
        with pytest.raises(ValueError, match=says):
            BatchBALD(**fields)(at["spare"])


def test_a_network_that_has_diverged_is_told():
    shares = some(3, 5, 2)
    shares[1, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite for 1 rows"):
        greedy(shares, 2, 100)


def measure(seed: int, arm: str) -> float:
    """Test accuracy with 40 labels, 20 at random and 2 rounds of 10, from a pool in which every row is there three times."""
    run, rows = Run(seed), data("digits/train")
    order = run.numpy("claim").permutation(len(rows))
    with run.global_rng("net"):
        layers = torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Dropout(0.25), torch.nn.Linear(64, 10)
        net = torch.nn.Sequential(*layers)
    pool = Data(rows.take(np.repeat(order[20:320], 3)).arrow())
    picker = BatchBALD(draws=10, outcomes=300) if arm == "method" else BALD(draws=10)
    loop = ActiveLearning(pool=pool, acquire=picker, rounds=2, steps=150, lr=3e-3)
    return Accuracy()(run, loop(run, Model(net), rows.take(order[:20])), data("digits/test")).value


CLAIM = Claim(
    method="batch_bald",
    world="digits",
    rival="the rows of highest BALD",
    quantity="test accuracy with 40 labels, 20 asked for of a pool with copies",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
