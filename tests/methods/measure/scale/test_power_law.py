"""Shards double and nest, the small-data region is dropped, the law comes back; on digits it predicts the error of all rows."""

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.scale.power_law import PowerLaw, power_region, shards
from trainlore.nouns import Report
from trainlore.primitives.statistics import outcomes
from trainlore.runs import Run
from trainlore.worlds import tiny

HOW = {"smallest": 10, "share": 0.2, "least": 60, "epochs": 16.0, "lr": 1e-2}


def test_shards_double_up_to_the_largest():
    for smallest, largest in [(16, 200), (40, 160), (7, 1000)]:
        sizes = shards(smallest, largest)
        assert sizes[-1] == largest and smallest <= sizes[0] < 2 * smallest
        assert (sizes[1:] / sizes[:-1]) == pytest.approx(np.full(len(sizes) - 1, 2), rel=0.05)


def test_the_small_data_region_ends_where_guessing_is_beaten_for_good():
    assert power_region([0.9, 0.89, 0.7, 0.9, 0.5, 0.3, 0.2], 0.9).tolist() == [False] * 4 + [True] * 3
    assert power_region([0.9, 0.9, 0.9, 0.9, 0.5], 0.9).tolist() == [
        False,
        False,
        True,
        True,
        True,
    ]  # never below three
    assert power_region([0.5, 0.4, 0.3], 0.9).all() and power_region([9.0, 7.0, 5.0], float("inf")).all()


@cache
def curve(seed: int) -> tuple[Report, float]:
    """The report of the law on at most 80 rows of digits, and the error measured at all 400."""
    nouns = tiny.world("digits", seed)
    report = PowerLaw(train=nouns["data"], **HOW)(Run(seed), nouns["model"], nouns["test"])
    errors = []
    for order in range(2):
        rows = Run(seed).numpy("shards", order).permutation(400)
        grown = Run(seed).fit(
            tiny.world("digits", seed)["model"], nouns["data"].take(rows), steps=200, batch_size=32, lr=1e-2
        )
        errors.append(1 - outcomes(Run(), grown, nouns["test"])[0].mean())
    return report, float(np.mean(errors))


def test_the_report_holds_the_law_and_its_interval():
    notes = curve(0)[0].measured[0].notes
    law = notes["scale"] * 400.0 ** -notes["exponent"] + notes["floor"]
    assert notes["predicted"] == pytest.approx(law) and notes["predicted_at"] == 400
    assert notes["interval"][0] < notes["predicted"] < notes["interval"][1] and notes["sizes"] == [10, 20, 40, 80]
    assert notes["floor"] >= 0 and np.array(notes["errors"]).shape == (2, 4)
    assert 0.05 < curve(0)[0].value < 0.6


def test_bad_input_is_named():
    nouns = tiny.world("digits")
    for fields, said in (
        ({"share": 0.0}, "share"),
        ({"smallest": 90}, "three shards"),
        ({"level": 1.0}, "level"),
        ({"metric": "f1"}, "metric"),
    ):
        with pytest.raises(ValueError, match=said):
            PowerLaw(train=nouns["data"], **{**HOW, "least": 1, "epochs": 0.1, **fields})(
                Run(), nouns["model"], nouns["test"]
            )


def measure(seed: int, arm: str) -> float:
    """Miss of the error at 400 rows from shards of 80 and less; the rival says that it stays what it was at 80."""
    report, truth = curve(seed)
    notes = report.measured[0].notes
    return abs((notes["predicted"] if arm == "method" else float(np.mean(notes["errors"], 0)[-1])) - truth)


CLAIM = Claim(
    method="power_law",
    world="digits",
    rival="the error at the largest shard",
    quantity="absolute miss of the error at 5 times the rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
