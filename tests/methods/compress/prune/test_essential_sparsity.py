from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.compress.prune.essential_sparsity import EssentialSparsity, knee
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.measure.evaluate.held_out_loss import HeldOutLoss
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_knee_of_two_lines_is_found_and_a_line_or_a_gain_has_none():
    x = np.arange(10) / 10
    place, before, after = knee(x, 0.9 - 0.1 * x - 2.0 * np.maximum(0, x - 0.55))
    assert (place, before, after) == pytest.approx((0.55, -0.1, -2.1), abs=0.01)
    place, before, after = knee(x, 0.5 - 0.3 * np.minimum(x, 0.4))
    assert (place, before) == (0.9, after) and before == pytest.approx(
        np.polyfit(x, 0.5 - 0.3 * np.minimum(x, 0.4), 1)[0]
    )


def test_a_small_least_squares_by_hand():
    x, y = np.array([0.0, 0.25, 0.5, 0.75]), np.array([1.0, 1.0, 1.0, 0.5])
    assert knee(x, y) == pytest.approx((0.5, 0.0, -2.0), abs=1e-6)


@pytest.mark.parametrize("fields", [{}, {"scope": "layer"}, {"neighbours": 4}])
def test_the_scores_are_those_of_magnitude_pruning(fields):
    at, run = world("digits"), Run(0)
    report = run.step(
        EssentialSparsity(judge=Accuracy(), shares=(0.0, 0.3, 0.6, 0.9), **fields), at["teacher"], at["test"]
    )
    assert report.measured[1].metric == "accuracy by share" and len(report.measured[1].values) == 4
    for share, got in zip(report.measured[0].notes["shares"], report.measured[1].values, strict=True):
        same = {"pattern": f"{4 - round(4 * share)}:4"} if "neighbours" in fields else {"keep": 1 - share, **fields}
        model = run.step(Magnitude(tolerance=9.0, **same), at["teacher"].copy())
        assert got == pytest.approx(run.step(Accuracy(), model, at["test"]).value)
    assert 0 < report.value <= report.measured[0].notes["shares"][-1]


def test_within_is_the_last_share_before_the_first_loss_and_losses_count_the_other_way():
    at, run = world("text"), Run(0)
    report = run.step(
        EssentialSparsity(judge=HeldOutLoss(), shares=(0.0, 0.2, 0.6, 0.9), loss=0.1), at["teacher"], at["held_out"]
    )
    scores, notes = report.measured[1].values, report.measured[0].notes
    assert notes["within"] == max(s for s, v in zip(notes["shares"], scores, strict=True) if v <= 1.1 * scores[0])
    assert report.measured[1].better == "lower" and notes["slopes"][1] > 0


def test_fine_tuning_moves_the_scores_up():
    at, run = world("digits"), Run(0)
    shares, more = (0.0, 0.3, 0.6, 0.95), {"steps": 20, "train": at["data"], "lr": 1e-2}
    plain, tuned = (
        run.step(EssentialSparsity(judge=Accuracy(), shares=shares, **f), at["teacher"], at["test"]) for f in ({}, more)
    )
    assert tuned.measured[1].values[-1] > plain.measured[1].values[-1] + 0.1


def test_bad_fields_are_named():
    at = world("digits")
    for fields, word in (
        ({"shares": (0.0, 0.5)}, "shares"),
        ({"shares": (0.1, 0.2, 0.3, 0.4)}, "shares"),
        ({"neighbours": 2}, "neighbours"),
        ({"scope": "row"}, "scope"),
        ({"steps": 5}, "train"),
    ):
        with pytest.raises(ValueError, match=word):
            EssentialSparsity(judge=Accuracy(), **fields)(at["teacher"], at["test"])


@cache
def swept(seed: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The knee on one half of the test rows, the shares, and the accuracies on the other half."""
    at, run = world("digits"), Run(seed)
    model = run.fit(preset("mlp", seed=seed, width=64), at["data"], steps=100, **HOW["digits"])
    half, how = len(at["test"]) // 2, {"judge": Accuracy(), "shares": tuple(np.arange(10) / 10)}
    first, second = (run.step(EssentialSparsity(**how), model, at["test"].take(range(a, a + half))) for a in (0, half))
    return first.value, np.array(first.measured[0].notes["shares"]), second.measured[1].values


def measure(seed: int, arm: str) -> float:
    """Accuracy lost for a tenth of the weights on other rows than the knee was found on: below it, or (rival) above it."""
    place, shares, scores = swept(seed)
    at = np.interp([0.0, place, shares[-1]], shares, scores)
    below, above = (at[0] - at[1]) / place, (at[1] - at[2]) / max(shares[-1] - place, 1e-3)
    return float(below if arm == "method" else above) / 10


CLAIM = Claim(
    method="essential_sparsity",
    world="digits",
    rival="the shares above the knee",
    quantity="accuracy lost for a tenth of the weights",
    better="lower",
    measure=measure,
    seeds=20,
    quick=4,
)
