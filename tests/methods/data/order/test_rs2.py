"""RS2: passes over random subsets, exact to the row."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.order.rs2 import RS2, subset
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world


def orders(k):
    return torch.from_numpy(np.random.default_rng(k).permutation(10))


def test_without_again_rounds_are_slices_of_one_order():
    for round in range(9):
        order = orders(round // 3).tolist()  # 10 rows, 4 a round: three rounds an order, the last runs into its head
        at = round % 3 * 4
        assert subset(round, 4, orders, 10, again=False).tolist() == [order[(at + i) % 10] for i in range(4)]


def test_with_again_rounds_are_independent():
    assert subset(5, 4, orders, 10, again=True).tolist() == orders(5)[:4].tolist()


@pytest.mark.parametrize("again", [True, False])
def test_a_round_is_one_pass_over_its_subset(again):
    """40 rows a round and batches of 16: the stream of rows is round after round, each row of a round once."""
    seen: list[int] = []

    class Spy(Part):
        def batch(self, loop, s, batch):
            seen.extend(batch["row"].tolist())
            return batch

    part, run, nouns = RS2(keep=0.1, again=again), Run(0), world("digits")
    run.fit(nouns["model"], nouns["data"], Spy(), part, steps=15, **{**HOW["digits"], "batch_size": 16})
    rounds = [seen[i : i + 40] for i in range(0, 240, 40)]
    assert all(len(set(r)) == 40 for r in rounds)
    together = [len(set(a) & set(b)) for a, b in pairwise(rounds)]
    assert any(together) if again else not any(together)


@pytest.mark.parametrize("keep", [0.0, 1.5])
def test_a_share_that_is_none(keep):
    with pytest.raises(ValueError, match="keep"):
        Run(0).fit(world("digits")["model"], world("digits")["data"], RS2(keep=keep), steps=1, **HOW["digits"])


def test_rows_of_others_are_nobodys():
    s = {"left": torch.tensor([True, False, True, True]), "next": torch.ones(4, dtype=torch.bool)}
    RS2().batch(None, s, {"row": torch.tensor([0, 1, -1])})
    assert s["left"].tolist() == [False, False, True, True] and s["next"].tolist() == [True, False, True, True]


def measure(seed: int, arm: str) -> float:
    """Test accuracy after 100 steps on a tenth of the rows at a time: a fresh tenth each round, or one for ever."""
    nouns, run = world("digits", seed), Run(seed)
    data = nouns["data"]
    parts = [RS2(keep=0.1)] if arm == "method" else []
    if arm == "rival":
        data = data.take(run.numpy("subset").permutation(len(data))[:40])
    model = run.fit(nouns["model"], data, *parts, steps=100, **HOW["digits"])
    return float(run.infer(model, nouns["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="rs2",
    world="digits",
    rival="one fixed random subset",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
