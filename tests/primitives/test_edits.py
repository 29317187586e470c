from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from trainlore.nouns import Data
from trainlore.primitives import edits
from trainlore.primitives.edits import Words

TEXTS = ["the cat sat on the mat", "", "dog", "a b c d e f g h i j", "the the the"]
LIKE = {"cat": ["kitten", "house cat"], "b": ["B"], "the": ["a"]}


def rng(seed=0):
    return np.random.default_rng(seed)


def times(n, words):
    return np.full(len(words), n)


def test_words_come_and_go():
    words = Words.of(TEXTS)
    assert words.texts() == TEXTS and words.lengths.tolist() == [6, 0, 1, 10, 3]
    assert words.take(np.array([2, 0, 2])).texts() == ["dog", TEXTS[0], "dog"]
    assert Words.of([]).texts() == [] and Words.of(["", " "]).texts() == ["", ""]


def test_swaps_exchange_two_places_of_a_row():
    words = Words.of(TEXTS * 300)
    once = edits.swap(words, times(1, words), rng())
    for old, new in zip(TEXTS * 300, once.texts()):
        a, b = old.split(), new.split()
        assert Counter(a) == Counter(b) and sum(x != y for x, y in zip(a, b)) in ((2,) if len(set(a)) > 6 else (0, 2))
    first = Counter(t.split().index("a") for t in once.texts()[3::5])
    assert set(first) == set(range(10)) and first[0] / 300 == pytest.approx(0.8, abs=0.07)
    assert edits.swap(words, times(0, words), rng()).texts() == TEXTS * 300


def test_words_are_left_out_by_chance_and_one_stays():
    words = Words.of(TEXTS * 400)
    some = edits.delete(words, 0.3, rng())
    assert len(some.values) / len(words.values) == pytest.approx(0.7, abs=0.03)
    for old, new in zip(TEXTS * 400, some.texts()):
        left = iter(old.split())
        assert all(w in left for w in new.split())  # in the order they had
    none = edits.delete(words, 1.0, rng())
    assert np.array_equal(none.lengths, np.minimum(words.lengths, 1))
    kept = Counter(none.texts()[3::5])
    assert set(kept) == set("abcdefghij") and max(kept.values()) < 80


def test_what_is_put_in_stands_in_for_a_word_of_the_row():
    words, kin = edits.synonyms(Words.of(TEXTS * 300), LIKE)
    got = edits.insert(words, times(2, words), kin, rng()).texts()
    places = Counter()
    for old, new in zip(TEXTS * 300, got):
        could = {s for w in old.split() for s in LIKE.get(w, [])}
        more = Counter(new.split()) - Counter(old.split())
        assert more.total() == (0 if not could else more.total()) and set(more) <= {p for s in could for p in s.split()}
        if old == TEXTS[3]:
            assert more == {"B": 2}
            places.update(i for i, w in enumerate(new.split()) if w == "B")
    assert set(places) == set(range(12))  # before the first word, after the last one, and between
    assert got[1] == "" and got[2] == "dog"


def test_words_are_exchanged_everywhere_in_a_row_and_skipped_ones_never():
    words, kin = edits.synonyms(Words.of(TEXTS * 100), LIKE)
    both = set(edits.exchange(words, times(9, words), kin, rng()).texts()[::5])
    assert both == {"a kitten sat on a mat", "a house cat sat on a mat"}
    one = Counter(
        "cat" in t.replace("house cat", "") for t in edits.exchange(words, times(1, words), kin, rng()).texts()[::5]
    )
    assert 30 < one[True] < 70  # either of the two that can be
    skip = np.array([w == "the" for w in words.names])
    assert edits.exchange(words, times(9, words), kin, rng(), skip).texts()[4] == "the the the"


def test_neighbours_are_words_used_alike():
    told = rng(1)
    texts = [
        f"{told.choice(['red', 'blue', 'green'])} {told.choice(['car', 'bus', 'van'])} {told.choice(['stops', 'turns'])} here"
        for _ in range(300)
    ]
    words = Words.of([*texts, "once"])
    kin = edits.neighbours(words, k=1)
    alike = {
        w: [words.names[i] for i in kin.values[kin.offsets[n] : kin.offsets[n + 1]]] for n, w in enumerate(words.names)
    }
    assert alike["once"] == [] and alike["car"][0] in ("bus", "van") and alike["red"][0] in ("blue", "green")
    assert alike["stops"] == ["turns"]
    again = edits.neighbours(words, k=1)
    assert np.array_equal(kin.values, again.values)
    for few in (Words.of([]), Words.of(["a"]), Words.of(["a", "b", "a"]), Words.of(["a b", "a b"])):
        assert len(edits.neighbours(few).offsets) == len(few.names) + 1


def test_typos_are_as_many_as_asked_and_spaces_stay():
    texts = ["the quick brown fox jumps", "", "x", " é\u4e2d ", "the lazy dog sleeps \U0001f600"] * 200
    got = edits.typos(texts, 0.2, rng())
    assert edits.typos(texts, 0.0, rng()) == texts and edits.typos([], 0.5, rng()) == []
    for old, new in zip(texts, got):
        assert [c for c in new if c.isspace()] == [c for c in old if c.isspace()] and bool(new.strip()) == bool(
            old.strip()
        )
    changed = np.mean([a != b for a, b in zip(texts[::5], got[::5])])
    assert changed == pytest.approx(1 - 0.8**21, abs=0.03)  # 21 characters, rarely mistyped as themselves
    lengths = Counter(len(b) - len(a) for a, b in zip(texts[::5], got[::5]))
    assert {-1, 0, 1} <= set(lengths) and set("".join(got)) <= set("".join(texts))
    assert edits.typos(["ab"] * 50, 1.0, rng()) != ["ab"] * 50


def test_new_rows_are_copies_but_for_their_text():
    data = (
        Data.of({"text": ["a", "b", "c"], "label": [0, 1, 2]}).with_(input_ids=np.ones((3, 2), np.int64)).take([2, 0])
    )
    out = edits.added(data, {"text": ["C", "A", "AA"]}, np.array([0, 1, 1]))
    assert list(out.text()) == ["c", "a", "C", "A", "AA"] and out["label"].tolist() == [2, 0, 2, 0, 0]
    assert out["parents"].tolist() == [2, 0, 2, 0, 0] and out["augmented"].tolist() == [0, 0, 1, 1, 1]
    assert "input_ids" not in out.columns
    with pytest.raises(ValueError, match="1 texts for 2"):
        edits.added(data, {"text": ["C"]}, np.array([0, 1]))
