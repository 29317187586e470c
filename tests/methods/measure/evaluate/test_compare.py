"""The verdict follows the textbook test; under no difference it keeps its level; and it finds a real one that intervals miss."""

from functools import cache
from math import comb

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.compare import Compare, paired, verdict
from trainlore.primitives.statistics import outcomes
from trainlore.runs import Run
from trainlore.worlds import tiny


def test_zero_and_one_go_to_mcnemar_and_losses_to_the_signs():
    mine, theirs = np.r_[np.ones(15), np.zeros(5), np.ones(40)], np.r_[np.zeros(15), np.ones(45)]
    found = paired(mine, theirs, "higher", np.random.default_rng(0))
    tail = sum(comb(20, i) for i in range(6)) / 2**20
    assert found["test"] == "McNemar mid-p" and found["p"] == pytest.approx(2 * tail - comb(20, 5) / 2**20)
    assert (found["wins"], found["losses"], found["n"]) == (15, 5, 60) and found["difference"] == pytest.approx(10 / 60)
    assert found["interval"][0] < 10 / 60 < found["interval"][1]
    lower = paired([1.0, 2.0, 3.0], [1.5, 2.5, 3.6], "lower", np.random.default_rng(0))
    assert lower["test"] == "sign flip" and lower["p"] == 2 / 8 and lower["difference"] > 0


def test_verdicts():
    assert [verdict(0.01, 0.2), verdict(0.01, -0.2), verdict(0.2, 0.2), verdict(1.0, 0.0)] == [
        "better",
        "worse",
        *["cannot separate"] * 2,
    ]


def test_no_difference_is_found_in_about_one_of_twenty():
    rng = np.random.default_rng(1)
    right = rng.random((400, 2, 150)) < 0.8
    false = np.mean([paired(a, b, "higher", rng)["p"] < 0.05 for a, b in right])
    assert 0.01 < false < 0.08


def test_a_trained_model_beats_a_fresh_one_and_ties_with_itself():
    nouns = tiny.world("digits")
    data = nouns["test"].with_(domain=np.where(np.arange(len(nouns["test"])) % 2, "odd", "even").tolist())
    report = Compare(rival=nouns["model"])(Run(), nouns["teacher"], data)
    notes = report.measured[0].notes
    assert notes["verdict"] == "better" and report.value == pytest.approx(notes["model"] - notes["rival"])
    assert set(notes["domains"]) == {"odd", "even"} and notes["domains"]["odd"]["p"] >= notes["p"]
    again = Compare(rival=nouns["teacher"], metric="loss")(Run(), nouns["teacher"], data).measured[0].notes
    assert again["verdict"] == "cannot separate" and again["p"] == 1 and again["difference"] == 0
    assert Compare(rival=nouns["teacher"])(Run(), nouns["model"], data).measured[0].notes["verdict"] == "worse"


def test_bad_input_is_named():
    nouns = tiny.world("digits")
    for fields, said in (({"level": 0.0}, "level"), ({"metric": "speed"}, "metric")):
        with pytest.raises(ValueError, match=said):
            Compare(rival=nouns["teacher"], **fields)(Run(), nouns["model"], nouns["test"])


@cache
def answers(seed: int) -> np.ndarray:
    """Right answers (2, N) on the test rows of digits: a model trained for long, and one trained for a while."""
    nouns = tiny.world("digits", seed)
    models = [
        Run(seed).fit(nouns["model"].copy(), nouns["data"], steps=steps, **tiny.HOW["digits"]) for steps in (120, 60)
    ]
    return np.stack([outcomes(Run(seed), model, nouns["test"])[0] for model in models])


def measure(seed: int, arm: str) -> float:
    """How often 100 test rows show the better of two models to be better; the rival wants two intervals that do not overlap."""
    right, rng, found = answers(seed), np.random.default_rng(seed), []
    for _ in range(40):
        mine, theirs = right[:, rng.choice(right.shape[1], 100, replace=False)]
        if arm == "method":
            notes = paired(mine, theirs, "higher", rng)
            found.append(verdict(notes["p"], notes["difference"]) == "better")
        else:
            half = [1.96 * v.std() / 10 for v in (mine, theirs)]
            found.append(mine.mean() - half[0] > theirs.mean() + half[1])
    return float(np.mean(found))


CLAIM = Claim(
    method="compare",
    world="digits",
    rival="two intervals that do not overlap",
    quantity="share of 100-row samples that show the difference",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
