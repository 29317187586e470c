from __future__ import annotations

import hashlib
import re

import numpy as np
import pytest

from trainlore.primitives.ngrams import Hasher, bags

TEXTS = [
    "Alice went to the store, and bought 3.5 kg of (very) ripe apples!",
    "",
    "   \n\t ",
    "snake_case CamelCase x" + "y" * 100 + " " + "=" * 70,
    "naïve café ΣΟΦΟΣ 日本語 e\u0301tude İstanbul 😀😀 — x²",
    "one",
] * 3


def textbook(text: str, ngrams: int, buckets: int) -> np.ndarray:
    """The buckets of the DSIR authors, a word and a digest at a time."""
    counts = np.zeros(buckets, np.int64)
    # A word character, in Python's re plus combining marks and less superscripts: what NLTK 3.10 splits by.
    words = re.findall(r"(?:(?!²)[\w\u0300-\u036f])+|(?:²|[^\w\s\u0300-\u036f])+", text.lower())
    for n in range(1, ngrams + 1):
        for i in range(len(words) - n + 1):
            counts[int(hashlib.sha256(" ".join(words[i : i + n]).encode()).hexdigest(), 16) % buckets] += 1
    return counts


@pytest.mark.parametrize(("ngrams", "buckets"), [(1, 50), (2, 10_000), (3, 997)])
def test_sha256_gives_the_authors_buckets(ngrams, buckets):
    hasher = Hasher(ngrams, buckets, "sha256")
    want = np.array([textbook(t, ngrams, buckets) for t in TEXTS])
    for _ in range(2):  # cold and from the cache
        assert (hasher.counts(TEXTS) == want.sum(0)).all()
    gain = np.random.default_rng(0).normal(size=buckets)
    score, words = hasher.scores(TEXTS, gain)
    assert np.allclose(score, want @ gain)
    assert words.tolist() == [textbook(t, 1, 1).sum() for t in TEXTS]


def test_the_packages_own_numbers():
    # From the package's test: 'alice' is in bucket 6720 of 10,000 and 'alice went' in 114.
    counts = Hasher(2, 10_000, "sha256").counts(["Alice went"])
    assert counts[6720] == 1 and counts[114] == 1 and counts.sum() == 3


def test_the_fast_hash_separates_and_repeats_like_a_dictionary():
    words = [f"w{i}" + "x" * (i % 90) for i in range(3000)]
    hasher = Hasher(2, 2**31 - 1)
    grams = next(hasher.grams([" ".join(words)]))
    assert len(np.unique(grams.bucket)) >= 2 * 3000 - 1 - 25  # 2**31 buckets: about 8 chance collisions among 6,000
    again = next(hasher.grams(["padding moves all bytes  ", " ".join(words)]))
    assert (again.bucket[again.row == 1] == grams.bucket).all()
    share = np.bincount(next(Hasher(1, 10).grams([" ".join(words)])).bucket, minlength=10) / 3000
    assert abs(share - 0.1).max() < 0.03


def test_pairs_stop_at_the_row_and_order_matters():
    h = Hasher(2, 2**31 - 1)
    both, alone = next(h.grams(["a b", "c d"])), next(h.grams(["a b"]))
    assert both.row.tolist() == [0, 0, 1, 1, 0, 1] and both.words.tolist() == [2, 2]
    assert (both.bucket[both.row == 0] == alone.bucket).all()
    assert next(h.grams(["b a"])).bucket[2] != alone.bucket[2]


def test_chunks_change_nothing():
    texts = [t * 40 for t in TEXTS] * 60  # several chunks
    assert len(list(Hasher().grams(texts))) > 1
    gain = np.random.default_rng(1).normal(size=10_000)
    whole, words = Hasher().scores(texts, gain)
    one = [Hasher().scores([t], gain) for t in texts[:12]]
    assert np.allclose(whole[:12], [s[0] for s, _ in one]) and words[:12].tolist() == [w[0] for _, w in one]
    assert Hasher().counts(iter(())).sum() == 0 and len(Hasher().scores([], gain)[0]) == 0


@pytest.mark.parametrize("bad", [{"ngrams": 0}, {"buckets": 0}, {"hash": "md5"}])
def test_bad_fields_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Hasher(**bad)


def test_bags_are_counts_of_length_one():
    texts = ["a b a", "", "c c"]
    got, grams = np.concatenate([x.toarray() for x in bags(Hasher(2, 64), texts)]), next(Hasher(2, 64).grams(texts))
    for i, row in enumerate(got):
        count = np.bincount(grams.bucket[grams.row == i], minlength=64)
        assert np.allclose(row, count / max(1, np.linalg.norm(count)))
