"""Even pieces: where the cuts fall, and that nothing is lost."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean.even_pieces import EvenPieces, cuts, pieces
from trainlore.nouns import Data


def by_hand(ends, words, slack):
    n = len(ends)
    k = max(1, round(n / words))
    at = {0, n}
    for i in range(1, k):
        ideal = i * n / k
        stops = sorted((abs(j + 1 - ideal), j + 1) for j in range(n) if ends[j])
        at.add(stops[0][1] if stops and stops[0][0] <= slack * words else round(ideal))
    return sorted(at)


def test_cuts_are_as_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(200):
        ends = rng.random(rng.integers(1, 80)) < rng.choice([0.0, 0.1, 0.3])
        words, slack = int(rng.integers(1, 30)), float(rng.choice([0.0, 0.25, 0.5]))
        assert cuts(ends, words, slack).tolist() == by_hand(ends.tolist(), words, slack)


def test_a_cut_prefers_the_end_of_a_sentence():
    text = 'One two three. Four five "six seven."  Eight\nnine ten eleven twelve.'
    assert pieces(text, 6) == [('One two three. Four five "six seven."', 7), ("Eight\nnine ten eleven twelve.", 5)]
    even = [('One two three. Four five "six', 6), ('seven."  Eight\nnine ten eleven twelve.', 6)]
    assert pieces(text, 6, slack=0.0) == even
    assert pieces("  a b  ", 6) == [("a b", 2)] and pieces(" \n ", 6) == [("", 0)]


def test_pieces_remember_their_text_and_its_columns():
    texts = ["a " * 25, "short", "b " * 8]
    made = EvenPieces(words=10, least=5)(Data.of({"text": texts, "domain": ["x", "y", "z"]}).take([2, 1, 0]))
    assert made["parents"].tolist() == [2, 0, 0] and made["domain"].to_pylist() == ["z", "x", "x"]
    assert [len(t.split()) for t in made.text()] == [8, 12, 13]
    assert list(made.columns) == ["text", "domain", "piece_rule", "parents"]


def test_short_pieces_lie_beside_the_others_with_the_reason():
    data = Data.of({"text": ["a " * 25, "short", "", "b " * 8], "input_ids": [[1]] * 4, "labels": [[1]] * 4})
    made = EvenPieces(words=10, least=9)(data)
    gone = made.dropped()
    assert [len(t.split()) for t in made.text()] == [12, 13] and set(made["piece_rule"].to_pylist()) == {""}
    assert list(gone.text()) == ["short", "", ("b " * 8).strip()] and gone["parents"].tolist() == [1, 2, 3]
    assert gone["piece_rule"].to_pylist() == ["fewer than 9 words", "no text", "fewer than 9 words"]
    assert "input_ids" not in made.columns  # those are of the whole text
    again = EvenPieces(words=6, least=7)(made)
    assert again["parents"].tolist() == [1] and again.dropped()["piece_rule"].to_pylist() == ["fewer than 7 words"] * 3


@pytest.mark.parametrize("fields", [{"words": 0}, {"slack": 0.7}, {"least": 99}, {"column": "story"}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields)) if "column" not in fields else "story"):
        EvenPieces(**fields)(Data.of(["a b c"]))


def measure(seed: int, arm: str) -> float:
    """The share of pieces that end inside a sentence, cutting at sentence ends or at every 20th word."""
    rng = np.random.default_rng(seed)
    texts = []
    for _ in range(40):
        sentences = [" ".join(["word"] * rng.integers(3, 9)) + "." for _ in range(rng.integers(10, 30))]
        texts.append(" ".join(sentences))
    if arm == "method":
        made = list(EvenPieces(words=20, least=1)(Data.of(texts)).text())
    else:
        made = [" ".join(t.split()[i : i + 20]) for t in texts for i in range(0, len(t.split()), 20)]
    return sum(not piece.endswith(".") for piece in made) / len(made)


CLAIM = Claim(
    method="even_pieces",
    world="sentences",
    rival="a cut every so many words",
    quantity="share of pieces that end inside a sentence",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
