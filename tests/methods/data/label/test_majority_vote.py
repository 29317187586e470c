from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.label.label_votes import LabelVotes
from trainlore.methods.data.label.majority_vote import MajorityVote
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import data

VOTES = Data.of({"votes": np.array([[0, 0, 1], [1, -1, -1], [-1, -1, -1], [2, 0, -1]])})


def test_the_most_votes_win_and_nobody_is_dropped():
    out = MajorityVote()(VOTES)
    assert out.ids.tolist() == [0, 1, 3] and out["label"].tolist() == [0, 1, 0]
    assert np.allclose(out["shares"], [[2 / 3, 1 / 3, 0], [0, 1, 0], [0.5, 0, 0.5]])
    assert np.allclose(out["confidence"], [2 / 3, 1, 0.5])


def test_kept_rows_and_ties():
    kept = MajorityVote(uncovered="keep", classes=4)(VOTES)
    assert kept["label"].tolist() == [0, 1, -1, 0] and np.allclose(kept["shares"][2], 0.25)
    assert MajorityVote(ties="abstain")(VOTES).ids.tolist() == [0, 1]
    tied = Data.of({"votes": np.tile([[1, 3]], (400, 1))})
    chance = MajorityVote(ties="random")(tied)["label"]
    assert set(chance.tolist()) == {1, 3} and 140 < (chance == 1).sum() < 260


def test_a_labeller_makes_the_votes():
    rows = Data.of(["good day", "bad day", "a day"])
    rules = ({"label": 1, "if": "good"}, {"label": 0, "if": "bad"})
    out = MajorityVote(labeller=LabelVotes(rules=rules))(rows)
    assert out["label"].tolist() == [1, 0] and "votes" in out.columns


def test_bad_input_is_named():
    for given, words in (
        ({"votes": np.full((3, 2), -1)}, "no function votes"),
        ({"votes": np.zeros((3, 2), int)}, "classes=2"),
        ({"votes": np.zeros((3, 2))}, "whole numbers"),
        ({"text": ["a"]}, "needs column 'votes'"),
    ):
        with pytest.raises(ValueError, match=words):
            MajorityVote()(Data.of(given))
    with pytest.raises(ValueError, match="classes=2: give"):
        MajorityVote(classes=2)(VOTES)
    with pytest.raises(ValueError, match="no row is left"):
        MajorityVote(ties="abstain")(Data.of({"votes": np.array([[0, 1]])}))
    assert MajorityVote(classes=2)(Data.of({"votes": np.zeros((3, 2), int)}))["label"].tolist() == [0, 0, 0]


def weak(seed: int) -> Data:
    """Digits with the votes of eight nearest-mean classifiers, each on a few pixels and 60 labelled rows."""
    rng = Run(seed).numpy("weak")
    known = data("digits/test").take(rng.permutation(400)[:60])
    x, y = known["features"], known["label"]

    def one():
        pixels = rng.permutation(64)[: int(rng.integers(4, 24))]
        far = np.full(len(pixels), 9.0)
        means = np.stack([x[y == k][:, pixels].mean(0) if (y == k).any() else far for k in range(10)])

        def vote(rows):
            gap = ((rows["features"][:, None, pixels] - means) ** 2).sum(2)
            first, second = np.sort(gap, axis=1)[:, :2].T
            return np.where(first < 0.8 * second, gap.argmin(1), -1)

        return vote

    rows = data("digits/noisy").without("label")
    return LabelVotes(functions=tuple(one() for _ in range(8)))(Run(seed), rows)


def measure(seed: int, arm: str) -> float:
    """Share of all rows that get their true class."""
    rows = weak(seed)
    votes, truth = rows["votes"], rows["truth"]
    if arm == "rival":
        return float((votes == truth[:, None]).mean(0).max())
    return float((MajorityVote(classes=10, uncovered="keep")(Run(seed), rows)["label"] == truth).mean())


CLAIM = Claim(
    method="majority_vote",
    world="digits",
    rival="the one function that is right most often",
    quantity="share of all rows labelled right by eight weak functions",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
