from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.label.label_model import LabelModel
from trainlore.methods.data.label.label_votes import LabelVotes
from trainlore.methods.data.label.majority_vote import MajorityVote
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import data


def planted(n=2000):
    """Two good functions against three that are little better than chance."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    right = rng.random((n, 5)) < [0.95, 0.9, 0.55, 0.55, 0.55]
    return Data.of({"votes": np.where(right, truth[:, None], 1 - truth[:, None]), "truth": truth})


def test_two_good_functions_outvote_three_bad_ones():
    rows = planted()
    accuracy = {}
    for method in (LabelModel(), LabelModel(table="full"), MajorityVote()):
        out = method(rows)
        accuracy[method] = (out["label"] == out["truth"]).mean()
    one, full, most = accuracy.values()
    assert min(one, full) > 0.93 and most < 0.9


def test_a_known_prior_is_kept_and_abstaining_rows_are_even():
    votes = np.array([[0, 1], [0, -1], [-1, -1], [1, 1]])
    out = LabelModel(prior=(0.9, 0.1), uncovered="keep", rounds=1)(Data.of({"votes": votes}))
    assert out["shares"][2].tolist() == [0.5, 0.5] and out["label"].tolist()[2] == -1
    flat = LabelModel(prior=(0.5, 0.5), uncovered="keep", rounds=1)(Data.of({"votes": votes}))
    odds = [m["shares"][:, 0] / m["shares"][:, 1] for m in (out, flat)]
    assert np.allclose((odds[0] / odds[1])[[0, 1, 3]], 9, rtol=1e-3)


def test_smoothing_keeps_shares_from_the_ends():
    rows = Data.of({"votes": np.array([[0, 0, 0], [1, 1, 1], [0, 0, 1]])})
    soft, hard = (LabelModel(smoothing=s)(rows)["confidence"].min() for s in (5.0, 0.0))
    assert 0.5 <= soft < hard


def test_bad_input_is_named():
    votes = Data.of({"votes": np.array([[0, 1], [1, 1]])})
    for fields, words in (
        ({"rounds": 0}, "rounds=0"),
        ({"smoothing": -1.0}, "smoothing=-1"),
        ({"prior": (0.5, 0.6)}, r"prior=\(0.5, 0.6\)"),
        ({"prior": (1.0,)}, "give 2 shares"),
        ({"prior": (0.5, float("nan"))}, "give 2 shares"),
        ({"table": "two_coins"}, "table='two_coins'"),
        ({"classes": 1}, "classes=1"),
    ):
        with pytest.raises(ValueError, match=words):
            LabelModel(**fields)(votes)
    with pytest.raises(ValueError, match="no function votes"):
        LabelModel()(Data.of({"votes": np.full((3, 2), -1)}))
    with pytest.raises(ValueError, match="no rows"):
        LabelModel()(votes.take([]))


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
    """Share of the covered rows that get their true class."""
    rows = weak(seed)
    method = LabelModel(classes=10, table="full") if arm == "method" else MajorityVote(classes=10, ties="random")
    out = method(Run(seed), rows)
    return float((out["label"] == out["truth"]).mean())


CLAIM = Claim(
    method="label_model",
    world="digits",
    rival="majority vote",
    quantity="share of covered rows labelled right from eight weak functions of unequal quality",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
