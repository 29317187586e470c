"""Near duplicates: true overlaps, what is dropped and what it is alike."""

import re
from itertools import pairwise

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean.near_duplicates import NearDuplicates, leaders, verified
from trainlore.nouns import Data
from trainlore.primitives import minhash

VOCABULARY = ["ab", "ac\u00e9", "Zu", "7", "x\u00fcx", "\u4e2d\u6587", "i"]


def runs(text, n):
    words = re.findall(r"[0-9a-z\u0080-\U0010ffff]+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def some_texts(rng, n=120):
    return ["; ".join(rng.choice(VOCABULARY, k)) + "." * (k % 2) for k in rng.integers(0, 9, n)]


@pytest.mark.parametrize("words", [1, 2, 5])
def test_jaccard_is_that_of_the_sets(words):
    rng = np.random.default_rng(words)
    texts = [*some_texts(rng), "", "...", "AB\0ac\u00e9"]
    sets = [runs(t.replace("\0", " "), words) for t in texts]
    hashed, offsets = minhash.shingles(texts, words)
    assert [len(set(hashed[a:b].tolist())) for a, b in pairwise(offsets)] == [len(s) for s in sets]
    pairs = rng.integers(0, len(texts), (800, 2))
    want = [len(sets[a] & sets[b]) / len(sets[a] | sets[b]) if sets[a] and sets[b] else 0.0 for a, b in pairs]
    assert minhash.jaccard(hashed, offsets, pairs) == pytest.approx(want)


def test_long_texts_are_hashed_as_short_ones(monkeypatch):
    texts = some_texts(np.random.default_rng(3))
    whole = minhash.shingles(texts, 2)
    monkeypatch.setattr(minhash, "TEXT", 20)
    assert all((a == b).all() for a, b in zip(whole, minhash.shingles(texts, 2), strict=True))


def test_signatures_agree_as_often_as_the_sets_overlap(monkeypatch):
    monkeypatch.setattr(minhash, "BLOCK", 7)
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in rng.integers(0, 500, 60)]
    hashed, offsets = minhash.shingles([" ".join(words), " ".join(words[:40]), ""], 2)
    mult, add = (rng.integers(0, 1 << 63, 2000).astype(np.uint64) * np.uint64(2) for _ in "ab")
    found = minhash.signatures(hashed, offsets, mult, add)
    naive = [
        min(((int(h) >> 32) * (int(m) >> 32 | 1) + (int(a) >> 32)) % 2**32 for h in hashed[: offsets[1]])
        for m, a in zip(mult[:9], add[:9], strict=True)
    ]
    assert found[0, :9].tolist() == naive and (found[2] == 2**32 - 1).all()
    true = minhash.jaccard(hashed, offsets, np.array([[0, 1]]))[0]
    assert (found[0] == found[1]).mean() == pytest.approx(true, abs=4 * (true * (1 - true) / 2000) ** 0.5)


def test_candidates_share_a_band():
    keys = np.array([[1, 5], [2, 6], [1, 7], [1, 6], [3, 8]], np.uint64)
    assert minhash.candidates(keys).tolist() == [[0, 2], [0, 3], [1, 3], [2, 3]]


def test_no_row_is_dropped_for_a_row_that_is_gone():
    pairs = np.array([[0, 1], [1, 2]])
    assert leaders(pairs, np.array([True, True]), 3).tolist() == [-1, 0, -1]
    near = {(0, 1), (1, 2), (0, 2)}  # 0 and 2 met no band; 1 is gone, so 2 is asked about 0
    asked = verified(pairs, 0.5, lambda p: np.array([float(tuple(x) in near) for x in p.tolist()]), 3)
    assert asked.tolist() == [-1, 0, 0]


def test_what_is_dropped_is_alike_the_row_it_names():
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, 40, 30)) for _ in range(60)]
    texts += [t.replace(f" {t.split()[k]} ", " new ", 1) for t in texts for k in (3, 20)]
    data = Data.of(texts).take(rng.permutation(len(texts)))
    kept = NearDuplicates(threshold=0.6, words=2)(data)
    named = dict(enumerate(kept.table["duplicate_of"].to_pylist()))
    assert len(kept) < 90 and set(kept.ids) == {i for i, d in named.items() if d == -1}
    for i, d in named.items():
        if d >= 0:
            a, b = runs(texts[i], 2), runs(texts[d], 2)
            assert named[d] == -1 and len(a & b) / len(a | b) >= 0.6


@pytest.mark.parametrize(
    "fields", [{"threshold": 0.0}, {"threshold": 1.2}, {"words": 0}, {"bands": 0}, {"column": "story"}]
)
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields)) if "column" not in fields else "story"):
        NearDuplicates(**fields)(Data.of(["a b c"]))


def measure(seed: int, arm: str) -> float:
    """The share of rows left that are another row with one word in fifty changed."""
    rng = np.random.default_rng(seed)
    words = np.array([f"w{i}" for i in range(400)])
    first = [list(rng.choice(words, 60)) for _ in range(120)]
    second = [[w if rng.random() > 0.02 else "other" for w in f] for f in first[:60]]
    data = Data.of([" ".join(t) for t in first + second]).take(rng.permutation(180))
    dedup = NearDuplicates(threshold=0.6)(data)
    data = dedup if arm == "method" else data.take(rng.permutation(180)[: len(dedup)])
    left = set(data.ids.tolist())
    return sum(i + 120 in left and i in left for i in range(60)) / len(data)


CLAIM = Claim(
    method="near_duplicates",
    world="duplicates",
    rival="random_rows",
    quantity="share of near copies among the rows left",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
