"""Sentence pieces: what is cut from what, what is read of a corpus, and bad input."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean import sentence_pieces
from trainlore.methods.data.clean.sentence_pieces import SentencePieces
from trainlore.nouns import Data
from trainlore.runs import Run

SMALL = {"steps": 2, "width": 8, "window": 64}


def test_pieces_are_the_text_and_remember_it():
    texts = ["One two.  Three\nfour five", "", "x"]
    made = SentencePieces(**SMALL, threshold=2.0)(Data.of({"text": texts, "domain": ["p", "q", "r"]}).take([2, 1, 0]))
    assert list(made.text()) == ["x", "One two.  Three", "four five"] and made["parents"].tolist() == [2, 0, 0]
    assert made["domain"].to_pylist() == ["r", "p", "p"] and list(made.columns) == [
        "text",
        "domain",
        "piece_rule",
        "parents",
    ]
    assert made.dropped()["parents"].tolist() == [1] and made.dropped()["piece_rule"].to_pylist() == ["no text"]
    every = SentencePieces(**SMALL, threshold=1e-9)(Data.of(["ab cd"] * 2))
    assert list(every.text()) == list("abcd") * 2


def test_no_more_of_a_corpus_is_read_than_will_be_looked_at(monkeypatch):
    seen = []
    real = sentence_pieces.taught
    monkeypatch.setattr(sentence_pieces, "taught", lambda text, *how: seen.append(len(text)) or real(text, *how))
    SentencePieces(**SMALL)(Data.of(["ab. cd\n" * 40_000, "ab. cd\n" * 40_000]).take([0]))
    assert seen == [2 * 16 * 64]


def test_bad_input_is_named():
    rows = Data.of(["a b.", "c d."])
    for data, fields, said in (
        (Data.of(["no break"]), {}, "no line break"),
        (Data.of(["", " "]), {}, "no row has any text in column .text."),
        (rows, {"corpus": Data.of(["", " "])}, "corpus has no line break and no two rows of text"),
        (Data.of(["", " "]), {"corpus": rows}, "no row has any text"),
        (rows, {"remove": 1.5}, "remove=1.5"),
        (rows, {"threshold": 0.0}, "threshold=0"),
        (rows, {"window": 0}, "window=0"),
        (rows, {"like": Data.of({"label": [1]})}, "like"),
        (rows, {"like": rows.take([0])}, "two sentences"),
        (rows, {"column": "story"}, "story"),
    ):
        with pytest.raises(ValueError, match=said):
            SentencePieces(**{**SMALL, **fields})(data)


def sentences(rng, n):
    """Sentences that begin with one of three words and have three to eight of twenty others; half end in a full stop."""
    words = [f"{a}{b}{c}" for a in "bdgkm" for b in "aeio" for c in "n"]
    return [
        " ".join([rng.choice(["yet", "so", "the"]), *rng.choice(words, rng.integers(3, 9))]) + "." * rng.integers(2)
        for _ in range(n)
    ]


def f1(pieces, truth):
    def ends(parts):
        return set(np.cumsum([len(p.replace(" ", "")) for p in parts])[:-1].tolist())

    found, true = ends(pieces), ends(truth)
    return 2 * len(found & true) / max(1, len(found) + len(true))


def measure(seed: int, arm: str) -> float:
    """F1 of the places where sentences end, half of them without a mark."""
    rng = np.random.default_rng(seed)
    paragraphs = [" ".join(sentences(rng, rng.integers(1, 4))) for _ in range(400)]
    truth, like = sentences(rng, 200), sentences(rng, 100)
    text = " ".join(truth)
    if arm != "method":
        return f1(text.replace(". ", ".\n").split("\n"), truth)
    cutter = SentencePieces(corpus=Data.of(paragraphs), like=Data.of(like), steps=60, width=32, window=128, lr=1e-2)
    return f1(list(cutter(Run(seed), Data.of([text])).text()), truth)


CLAIM = Claim(
    method="sentence_pieces",
    world="sentences",
    rival="a cut after each full stop",
    quantity="F1 of the ends of sentences",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
