from __future__ import annotations

import json

import numpy as np
import pytest

from trainlore.methods.data.label.vote_table import VoteTable
from trainlore.nouns import Data
from trainlore.worlds.tiny import world

VOTES = np.array([[0, 0, -1], [1, -1, -1], [-1, -1, -1], [2, 0, 2]])


def test_rows_and_functions_by_hand():
    model = world("digits")["model"]
    rows = Data.of({"votes": VOTES, "truth": np.array([0, 0, 1, 2])})
    report = VoteTable(names=("a", "b", "c"))(model, rows)
    assert report["coverage"].values.tolist() == [1, 1, 0, 1]
    assert report["overlap"].values.tolist() == [1, 0, 0, 1]
    assert report["conflict"].values.tolist() == [0, 0, 0, 1]
    assert report["majority_accuracy"].values.tolist() == [1, 0, 1] and report["majority_accuracy"].rows.tolist() == [
        0,
        1,
        3,
    ]
    told = report["coverage"].notes["functions"]
    assert [f["name"] for f in told] == ["a", "b", "c"] and [f["coverage"] for f in told] == [0.75, 0.5, 0.25]
    assert [f["accuracy"] for f in told] == [2 / 3, 0.5, 1.0] and told[0]["classes"] == [0, 1, 2]
    json.dumps(report.summary())


def test_without_truth_or_votes_it_still_speaks():
    model = world("digits")["model"]
    report = VoteTable()(model, Data.of({"votes": np.full((3, 2), -1)}))
    assert [m.metric for m in report.measured] == ["coverage", "overlap", "conflict"]
    assert report.value == 0 and report["conflict"].value == 0
    silent = VoteTable()(model, Data.of({"votes": np.full((3, 2), -1), "truth": np.zeros(3, int)}))
    assert len(silent.measured) == 3


def test_bad_input_is_named():
    model = world("digits")["model"]
    with pytest.raises(ValueError, match="'votes'"):
        VoteTable()(model, Data.of({"text": ["a"]}))
    with pytest.raises(ValueError, match="2 names for 3"):
        VoteTable(names=("a", "b"))(model, Data.of({"votes": VOTES}))
    with pytest.raises(ValueError, match="truth='truth'"):
        VoteTable()(model, Data.of({"votes": VOTES, "truth": ["a", "b", "c", "d"]}))
