"""Sentence pieces: what the reader is taught, that windows do not show, thresholds, and cuts."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.clean import sentence_pieces
from trainlore.methods.data.clean.sentence_pieces import BREAK, REACH, Reader, SentencePieces, cuts, fitted, taught
from trainlore.nouns import Data, Model
from trainlore.runs import Run

SMALL = {"steps": 2, "width": 8, "window": 64}
MARKS = ".,!"


def by_hand(text, marks, lost):
    """(what is seen, labels) with the marks at the places `lost` taken out and all breaks made blanks."""
    seen, labels = [], []
    for i, c in enumerate(text):
        if i in lost:
            continue
        j = i + 1
        while j in lost:
            j += 1
        after = text[j] if j < len(text) else ""
        follows = text[i + 1] if i + 1 < len(text) else ""
        seen.append(" " if c == "\n" else c)
        labels.append(
            0 if c == "\n" else BREAK if after == "\n" else 2 + marks.index(follows) if follows in [*marks] else 0
        )
    return "".join(seen), labels


@pytest.mark.parametrize("remove", [0.0, 0.5, 1.0])
def test_what_is_taught_is_as_by_hand(remove):
    rng = np.random.default_rng(1)
    for _ in range(60):
        text = "".join(rng.choice(list("ab .,!\n"), 40)).replace("\n", "x\nx").strip() or "a"
        draw = np.random.default_rng(5)
        code, label = taught(text, MARKS, remove, 1.0, draw)
        plain = "\n".join(p.strip() for p in text.split("\n"))
        u = np.random.default_rng(5).random(len(plain))
        lost = {i for i, c in enumerate(plain) if c in MARKS and u[i] < remove}
        seen, labels = by_hand(plain, MARKS, lost)
        assert "".join(map(chr, code)) == seen and label.tolist() == labels
    assert "".join(map(chr, taught("ab \n\n cd\n", "", 0.5, 0.0, rng)[0])) == "abcd"


def test_chances_do_not_depend_on_windows_or_neighbours(monkeypatch):
    run, method = Run(0), SentencePieces()
    torch.manual_seed(0)
    model = Model(Reader(8, 4), "tagger")
    texts = [
        "".join(np.random.default_rng(k).choice(list("ab\u4e2d .\n"), n)) for k, n in enumerate((300, 0, 1, 700, 2))
    ]
    ids = [torch.tensor([[ord(" " if c.isspace() else c) + 1 for c in t]]) for t in texts]
    whole = [model.net(i)[0, :, 0].sigmoid().tolist() if i.numel() else [] for i in ids]
    for stride, characters in ((2048, 1 << 20), (64, 300)):
        monkeypatch.setattr(sentence_pieces, "STRIDE", stride)
        monkeypatch.setattr(sentence_pieces, "CHARACTERS", characters)
        for (text, p), want, given in zip(method._chances(run, model, Data.of(texts)), whole, texts, strict=True):
            assert text == given and p.tolist() == pytest.approx(want, abs=1e-5)
    far = model.net(torch.cat([torch.full((1, 50), 9), torch.zeros(1, REACH, dtype=torch.long), ids[0]], 1))[
        0, 50 + REACH :
    ]
    assert torch.allclose(far, model.net(ids[0])[0], atol=1e-5)


def test_cuts_and_thresholds():
    p = np.array([0, 0, 0.9, 0, 0.1, 0, 0.9, 0])
    assert cuts(p, "ab. cd\ne", 0.5) == ["ab.", "cd", "e"] and cuts(p, "abcdefgh", 0.05) == ["abc", "de", "fg", "h"]
    rng = np.random.default_rng(0)
    for _ in range(30):
        p, end = rng.integers(0, 9, 40) / 9, rng.random(40) < 0.3
        end[0] = True
        f1 = {t: 2 * ((p >= t) & end).sum() / ((p >= t).sum() + end.sum()) for t in set(p.tolist())}
        assert f1[fitted(p, end)] == max(f1.values())


def test_pieces_are_the_text_and_remember_it():
    texts = ["One two.  Three\nfour five", "", "x"]
    made = SentencePieces(**SMALL, threshold=2.0)(Data.of({"text": texts, "domain": ["p", "q", "r"]}).take([2, 1, 0]))
    assert list(made.text()) == ["x", "One two.  Three", "four five"] and made["parents"].tolist() == [2, 0, 0]
    assert made["domain"].to_pylist() == ["r", "p", "p"] and list(made.columns) == ["text", "domain", "parents"]
    every = SentencePieces(**SMALL, threshold=1e-9)(Data.of(["ab cd"] * 2))
    assert list(every.text()) == list("abcd") * 2


def test_bad_input_is_named():
    rows = Data.of(["a b.", "c d."])
    for data, fields, said in (
        (Data.of(["no break"]), {}, "no line break"),
        (Data.of(["", " "]), {}, "no line break"),
        (Data.of(["", " "]), {"corpus": rows}, "no row has any text"),
        (rows, {"remove": 1.5}, "remove=1.5"),
        (rows, {"threshold": 0.0}, "threshold=0"),
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
    world="made-up sentences, half of them without a full stop",
    rival="a cut after each full stop",
    quantity="F1 of the ends of sentences",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
