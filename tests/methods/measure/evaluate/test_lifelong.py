"""Every metric against a naive loop; and on two domains maintenance tells forgetting from replay."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.lifelong import Lifelong, maintenance, transfer
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds import tiny

AFTER = np.array([[0.9, 0.3, 0.1], [0.7, 0.8, 0.2], [0.6, 0.7, 0.9]])
BEFORE = np.array([0.1, 0.2, 0.1])


def test_maintenance_and_transfer_are_the_loops():
    for j in range(2):
        assert maintenance(AFTER)[j] == pytest.approx(np.mean([AFTER[i, j] - AFTER[j, j] for i in range(j + 1, 3)]))
    assert np.isnan(maintenance(AFTER)[2])
    forward, backward = transfer(AFTER, BEFORE)
    rows = [BEFORE, *AFTER]
    for i in range(3):
        for j in range(3):
            contrast = (rows[i + 1][j] - rows[i][j]) / (rows[i + 1][j] + rows[i][j])
            assert forward[i, j] == pytest.approx(contrast) if j > i else np.isnan(forward[i, j])
            assert backward[i, j] == pytest.approx(contrast) if j < i else np.isnan(backward[i, j])
    assert np.isnan(transfer(np.eye(2), [0, 0])[1][1, 0]) == 0 and np.isnan(transfer(np.eye(2), [0, 0])[0][0, 1])


def sequence(seed: int, replay: bool) -> tuple[Model, list[Model], dict]:
    """Digits below 5, then the others (the first kept in the mix, or not)."""
    nouns = tiny.world("digits", seed)
    data = {k: nouns[k].with_(domain=np.where(nouns[k]["label"] < 5, "low", "high").tolist()) for k in ("data", "test")}
    low = data["data"]["label"] < 5
    first = Run(seed).fit(nouns["model"].copy(), data["data"].where(low), steps=40, **tiny.HOW["digits"])
    second = Run(seed + 1).fit(
        first.copy(), data["data"] if replay else data["data"].where(~low), steps=40, **tiny.HOW["digits"]
    )
    return nouns["model"], [first, second], data


def test_the_report_tells_what_was_forgotten():
    model, stages, data = sequence(0, replay=False)
    report = Lifelong(stages=stages, tasks=["low", "high"], experts=stages)(Run(), model, data["test"])
    notes = report.measured[0].notes
    matrix = np.array(notes["matrix"])
    assert (
        matrix.shape == (3, 2)
        and notes["maintenance"] == pytest.approx(matrix[2, 0] - matrix[1, 0])
        and notes["maintenance"] < -0.2
    )
    assert notes["relative_performance"] == 1 and report.measured[0].by("task")["low"] == pytest.approx(matrix[2, 0])


def test_bad_input_is_named():
    model, stages, data = sequence(0, replay=False)
    for fields, said in (
        ({"tasks": ["low"]}, "pair up"),
        ({"tasks": ["low", "mid"]}, "mid"),
        ({"column": "x"}, "x"),
        ({"experts": stages[:1]}, "experts"),
    ):
        with pytest.raises(ValueError, match=said):
            Lifelong(**{"stages": stages, "tasks": ["low", "high"], **fields})(Run(), model, data["test"])
    with pytest.raises(ValueError, match="square"):
        maintenance([[0.1, 0.2]])


def measure(seed: int, arm: str) -> float:
    """Maintenance of the first task; the rival replays nothing."""
    model, stages, data = sequence(seed, replay=arm == "method")
    return Lifelong(stages=stages, tasks=["low", "high"])(Run(), model, data["test"]).measured[0].notes["maintenance"]


CLAIM = Claim(
    method="lifelong",
    world="digits",
    rival="the same sequence without replay",
    quantity="performance maintenance",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
