from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.label.label_budget import LabelBudget, purchase
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world

SHARES = (0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1)


def test_the_purchases_are_the_authors():
    sweep = [(640, 0), (610, 3), (520, 12), (390, 25), (260, 38), (130, 51), (40, 60), (0, 64)]
    assert [purchase(640, s) for s in SHARES] == sweep
    assert [purchase(80, s) for s in (0, 0.2, 0.4, 0.6, 0.8, 0.95, 1)] == [
        (80, 0),
        (70, 1),
        (50, 3),
        (40, 4),
        (20, 6),
        (10, 7),
        (0, 8),
    ]
    for budget, share, cheap, dear in ((97, 0.3, 0.7, 3.1), (5, 1.0, 1.0, 10.0), (0.5, 0.5, 1.0, 10.0)):
        weak, strong = purchase(budget, share, cheap, dear)
        assert weak * cheap + strong * dear <= budget and budget - weak * cheap - strong * dear < cheap + 1e-9
        assert strong * dear <= share * budget


class Watched(Run):
    """A run that remembers what was trained on."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, data, how["steps"])]
        return super().fit(model, data, *parts, **how)


def test_weak_first_then_strong_from_there():
    at, run = world("digits"), Watched(0)
    before = at["model"].fingerprint
    method = LabelBudget(strong=at["test"], budget=200.0, shares=(0.5,), held_out=0.0, steps=5)
    made = method(run, at["model"], at["noisy"])
    (start, weak, _), (middle, strong, _) = run.fits
    assert (len(weak), len(strong)) == (100, 10) and start == before != middle and at["model"].fingerprint == before
    assert "truth" in weak.columns and "truth" not in strong.columns
    (told,) = made.about["label_budget"]
    assert told == {"share": 0.5, "weak": 100, "strong": 10, "cost": 200.0, "accuracy": None}


def test_the_best_on_the_judge_is_handed_on_and_splits_share_their_rows():
    at, run = world("digits"), Watched(0)
    method = LabelBudget(
        strong=at["noisy"].with_(label=at["noisy"]["truth"]),
        judge=at["test"],
        budget=300.0,
        shares=(0.0, 0.5, 1.0),
        steps=40,
        lr=1e-2,
    )
    made = method(run, at["model"], at["data"])
    told = made.about["label_budget"]
    assert Accuracy()(run, made, at["test"]).value == pytest.approx(max(t["accuracy"] for t in told))
    assert len({t["accuracy"] for t in told}) > 1
    rows = [set(d.ids.tolist()) for _, d, _ in run.fits]
    assert [len(r) for r in rows] == [240, 120, 12, 24]  # a fifth of each stage is held out
    assert len(rows[1] & rows[0]) > 60


def test_a_stage_that_only_harms_is_undone():
    at, run = world("digits"), Run(0)
    good = run.fit(at["model"], at["data"], steps=200, **HOW["digits"])
    wild = LabelBudget(strong=at["test"], budget=1000.0, shares=(1.0,), steps=20, lr=1e3)
    assert wild(run, good, at["data"]).fingerprint == good.fingerprint


def test_bad_input_is_named():
    at = world("digits")
    for fields, words in (
        ({"budget": 5000.0}, "buys 4000 weak labels and there are 400"),
        ({"budget": 0.5}, "buys no label"),
        ({"budget": -1.0}, "above 0"),
        ({"shares": (0.0, 1.0)}, "need a `judge`"),
        ({"shares": (1.5,)}, "shares="),
        ({"shares": ()}, "shares="),
        ({"strong": at["spare"]}, "`strong`.*'label'"),
    ):
        with pytest.raises(ValueError, match=words):
            LabelBudget(**{"strong": at["test"], "budget": 100.0, **fields})(at["model"], at["data"])
    with pytest.raises(ValueError, match="'label'"):
        LabelBudget(strong=at["test"], budget=100.0)(at["model"], at["spare"])


def measure(seed: int, arm: str) -> float:
    """A budget of 1,000: cheap labels by a small network that learned from 60 rows (about 70% right), good ones at 10 each."""
    run, rows, spare = Run(seed), data("digits/train"), data("digits/spare")
    few = rows.take(run.numpy("few").permutation(1000)[:60])
    small = run.fit(preset("mlp", seed=100 + seed, width=16), few, steps=150, **HOW["digits"])
    said = run.infer(small, rows, lambda b, o: o.argmax(-1)).numpy().astype(np.int64)

    def accuracy(share):
        method = LabelBudget(
            strong=spare.with_(label=spare["truth"]), budget=1000.0, shares=(share,), steps=150, checks=5, lr=3e-3
        )
        return Accuracy()(
            run, method(run, preset("mlp", seed=seed, width=32), rows.with_(label=said)), data("digits/test")
        ).value

    return accuracy(0.8) if arm == "method" else max(accuracy(0.0), accuracy(1.0))


CLAIM = Claim(
    method="label_budget",
    world="digits",
    rival="the better of all weak and all strong, by test accuracy, for the same money",
    quantity="test accuracy at a budget of 1,000 with four fifths spent on strong labels",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
