from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.methods.measure.evaluate.calibration import Calibration, calibration_error, tally
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def textbook(confidence, correct, bins):
    """The authors' definition with plain loops."""
    total = 0.0
    for b in range(bins):
        mine = [i for i, c in enumerate(confidence) if b / bins < c <= (b + 1) / bins]
        if mine:
            gap = sum(correct[i] for i in mine) / len(mine) - sum(confidence[i] for i in mine) / len(mine)
            total += len(mine) / len(confidence) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_the_error_is_the_textbooks(bins):
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.05, 1.0, 500)
    correct = rng.random(500) < confidence**2
    assert calibration_error(confidence, correct, bins) == pytest.approx(textbook(confidence, correct, bins))


def test_edges_belong_to_the_bin_below():
    row = tally(torch.tensor([[0.5, 1.0, 0.500001, 0.0]]), torch.ones(1, 4), torch.tensor([[1, 1, 1, 0]]), 2)
    assert row[0, :, 0].tolist() == [1, 2]  # 0.5 in (0, 0.5]; the token that does not count is in none
    assert calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([1, 1, 1, 0])) == 0


def test_the_report_is_the_error_of_its_rows():
    at = world("digits")
    report = Calibration(bins=10)(Run(0), at["teacher"], at["test"])
    confidence, correct = report["confidence"].values, report["accuracy"].values
    assert report.value == pytest.approx(calibration_error(confidence, correct, 10)) and len(confidence) == len(
        at["test"]
    )
    bins = report["calibration_error"].notes["bins"]
    assert sum(b["n"] for b in bins) == len(at["test"]) and bins[-1]["to"] == 1.0
    top = confidence > 0.9
    assert bins[-1]["accuracy"] == pytest.approx(correct[top].mean()) and bins[-1]["confidence"] == pytest.approx(
        confidence[top].mean()
    )


def test_of_a_language_model_every_labelled_token_counts_once():
    at = world("text")
    report = Calibration()(Run(0), at["teacher"], at["held_out"])
    confidence, correct = [], []
    for i in range(len(at["held_out"])):
        batch = at["held_out"].batch([i], at["teacher"])
        with torch.no_grad():
            best, said = at["teacher"](batch)[0, :-1].softmax(-1).max(-1)
        wanted = batch["labels"][0, 1:]
        confidence += best[wanted >= 0].tolist()
        correct += (said == wanted)[wanted >= 0].tolist()
    assert report.value == pytest.approx(calibration_error(np.array(confidence), np.array(correct)), abs=1e-4)
    assert report["accuracy"].value == pytest.approx(np.mean(correct))


def test_the_authors_bins_and_bad_input():
    assert Calibration().bins == 15
    at = world("digits")
    for method, rows, name in (
        (Calibration(bins=0), at["test"], "bins=0"),
        (Calibration(), at["spare"], "'label'"),
        (Calibration(), at["test"].take([]), "no rows"),
    ):
        with pytest.raises(ValueError, match=name):
            method(at["model"], rows)
