from __future__ import annotations

import re

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.label.label_votes import LabelVotes, pattern
from trainlore.methods.data.label.majority_vote import MajorityVote
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world

TEXTS = ["Refund me, please", "all good here", "a broken arm and a refund", "brokenhearted but good", ""]


def test_rules_vote_as_a_search_by_hand_would():
    rows = Data.of({"text": TEXTS, "length": [float(len(t)) for t in TEXTS]})
    rules = (
        {"label": 1, "words": ["refund", "broken"]},
        {"label": 0, "if": r"\bgood\b"},
        {"label": 2, "column": "length", "above": 13.0, "below": 22.0},
    )
    got = LabelVotes(rules=rules)(rows)["votes"]
    for text, votes in zip(TEXTS, got.tolist(), strict=True):
        assert votes[0] == (1 if re.search(r"\b(refund|broken)\b", text, re.I) else -1)
        assert votes[1] == (0 if re.search(r"\bgood\b", text) else -1)
        assert votes[2] == (2 if 13 < len(text) < 22 else -1)
    strict = LabelVotes(rules=rules[:1], ignore_case=False)(rows)["votes"]
    assert strict[:, 0].tolist() == [-1, -1, 1, -1, -1]


def test_words_are_taken_literally_and_null_matches_nothing():
    assert re.fullmatch(pattern(["a.b", "c d"]), "a.b") and not re.fullmatch(pattern(["a.b"]), "axb")
    rows = Data.of({"text": ["axb", "a.b", None, "c d"]})
    assert LabelVotes(rules=({"label": 0, "words": ["a.b", "c d"]},))(rows)["votes"][:, 0].tolist() == [-1, 0, -1, 0]
    assert LabelVotes(rules=({"label": 0, "if": ".*"},))(rows)["votes"][:, 0].tolist() == [0, 0, -1, 0]


def test_entries_of_vectors_and_python_functions_after_the_rules():
    rows = world("digits")["data"].take(range(20))
    got = LabelVotes(
        rules=({"label": 3, "column": "features", "at": 20, "above": 0.5},), functions=(lambda d: d["label"],)
    )(rows)["votes"]
    assert got[:, 0].tolist() == [3 if x[20] > 0.5 else -1 for x in rows["features"]]
    assert got[:, 1].tolist() == rows["label"].tolist() and got.dtype == np.int16


@pytest.mark.parametrize(
    "rule, words",
    [
        ({"label": 1}, "asks nothing"),
        ({"label": -1, "if": "a"}, "label=-1"),
        ({"label": "spam", "if": "a"}, "label='spam'"),
        ({"label": 1, "iff": "a"}, "no key 'iff'"),
        ({"label": 1, "if": "a", "words": ["b"]}, "asks if and words"),
        ({"label": 1, "if": "("}, "cannot be searched"),
        ({"label": 1, "words": []}, "list of words"),
        ({"label": 1, "words": "abc"}, "list of words"),
        ({"label": 1, "column": "n", "above": "x"}, "above='x'"),
        ({"label": 1, "column": "n", "above": 2, "below": 1}, "above=2"),
        ({"label": 1, "if": "a", "column": "n"}, "no text"),
        ({"label": 1, "column": "text", "above": 1.0}, "no numbers"),
        ({"label": 1, "column": "x", "above": 1.0}, "no column 'x'"),
        ({"label": 1, "column": "v", "above": 1.0}, "at=None"),
    ],
)
def test_bad_rules_are_named(rule, words):
    rows = Data.of({"text": ["a", "b"], "n": [1.0, 2.0], "v": np.zeros((2, 3))})
    with pytest.raises(ValueError, match=words):
        LabelVotes(rules=(rule,))(rows)


def test_bad_functions_and_nothing_at_all_are_named():
    rows = Data.of({"text": ["a", "b"]})
    for function, words in (
        (lambda d: [1], "not a whole number for each of 2"),
        (lambda d: [-2, 0], "votes for -2"),
        (lambda d: [0, 40_000], "votes for 40000"),
    ):
        with pytest.raises(ValueError, match=words):
            LabelVotes(functions=(function,))(rows)
    with pytest.raises(ValueError, match="no rules"):
        LabelVotes()(rows)
    with pytest.raises(ValueError, match="no rows"):
        LabelVotes(rules=({"label": 0, "if": "a"},))(rows.take([]))


def measure(seed: int, arm: str) -> float:
    """Share of 300 texts that get the right domain, from 20 labelled ones: words typical of either, or the commoner domain."""
    rows = Data(two_domains.make(320, seed=1000 + seed))
    label = np.array([int(d == "b") for d in rows["domain"].to_pylist()])
    if arm == "rival":
        return float((label[20:] == np.bincount(label[:20]).argmax()).mean())
    said = [set(t.split()) for t in rows.take(range(20)).text()]
    words = sorted(set().union(*said))
    has = np.array([[w in s for w in words] for s in said])
    order = np.argsort(has[label[:20] == 1].mean(0) - has[label[:20] == 0].mean(0), kind="stable")
    rules = tuple({"label": k, "words": [words[i]]} for k, ends in ((0, order[:6]), (1, order[-6:])) for i in ends)
    voted = LabelVotes(rules=rules)(Run(seed), rows.take(range(20, 320)))
    found = MajorityVote(classes=2, ties="random", uncovered="keep")(Run(seed), voted)
    return float((found["label"] == label[20:]).mean())


CLAIM = Claim(
    method="label_votes",
    world="text",
    rival="the commoner class for every row",
    quantity="share of rows labelled right by the majority of twelve one-word rules",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
