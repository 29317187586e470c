"""Breaks: what the reader is taught, that windows do not show, thresholds, and cuts."""

import numpy as np
import pytest
import torch

from trainlore.nouns import Model
from trainlore.primitives import breaks
from trainlore.primitives.breaks import BREAK, REACH, Reader, chances, cuts, fitted, taught
from trainlore.runs import Run

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
    run = Run(0)
    torch.manual_seed(0)
    model = Model(Reader(8, 4), "tagger")
    texts = [
        "".join(np.random.default_rng(k).choice(list("ab\u4e2d .\n"), n)) for k, n in enumerate((300, 0, 1, 700, 2))
    ]
    ids = [torch.tensor([[ord(" " if c.isspace() else c) + 1 for c in t]]) for t in texts]
    whole = [model.net(i)[0, :, 0].sigmoid().tolist() if i.numel() else [] for i in ids]
    for stride, characters in ((2048, 1 << 20), (64, 300)):
        monkeypatch.setattr(breaks, "STRIDE", stride)
        monkeypatch.setattr(breaks, "CHARACTERS", characters)
        for (text, p), want, given in zip(chances(run, model, texts), whole, texts, strict=True):
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
