from __future__ import annotations

import numpy as np
import pytest

from trainlore.primitives import phrases
from trainlore.primitives.phrases import Matcher, words


def spaced(text):
    """A text with its marks set apart, spelled out."""
    text = f" {text} "
    for mark in (",", ".", ";", ":", "?", "!", "`"):
        text = text.replace(mark, f" {mark} ")
    return text.replace("\t", " ").replace("\n", " ").replace("\r", " ")


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_matches_are_those_of_a_search_for_each_entry_in_each_text(chunk, monkeypatch):
    monkeypatch.setattr(phrases, "CHUNK", chunk)
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("ab ab ,.\n"), 30)) for _ in range(60)] + ["", "a", "a b"]
    entries = ["a", "b", "ab", "a b", "b a b", "a b a b a", ",", "a ,", "a  b", "zz", "b zz"]
    rows, which = Matcher(entries)(texts)
    want = [(i, e) for i, t in enumerate(texts) for e, entry in enumerate(entries) if f" {entry} " in spaced(t)]
    assert list(zip(rows.tolist(), which.tolist(), strict=True)) == want and len(want) > 100
    assert all(" ".join(words(t)) == spaced(t) for t in texts)


def test_nothing_to_look_in_or_for():
    assert [len(found) for found in Matcher(["a"])([])] == [0, 0] == [len(found) for found in Matcher([])(["a b"])]
