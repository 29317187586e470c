"""Decontamination: hits by hand, what the columns say, the estimate of false hits."""

import re

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean.decontaminate import Decontaminate, Index, chance
from trainlore.nouns import Data

VOCABULARY = np.array(["ab", "\u00e9t\u00e9", "Zu", "7", "\u4e2d\u6587", "i", "Or"])


def words(text):
    return re.findall(r"[0-9a-z\u0080-\U0010ffff]+", text.lower())


def runs(text, n):
    w = words(text)
    return {tuple(w[i : i + n]) for i in range(len(w) - n + 1)}


def some(rng, n, most):
    return ["; ".join(rng.choice(VOCABULARY, k)) + "." * (k % 2) for k in rng.integers(0, most, n)]


def test_hits_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    texts, tests = ["", "...", *some(rng, 300, 12)], ["", *some(rng, 25, 7)]
    index = Index(tests, 4, 3)
    owner, looked, gram = index.hits(texts)
    lengths = {min(4, len(words(t))) for t in tests if len(words(t)) >= 3}
    assert lengths == {3, 4} and 20 < (owner >= 0).sum() < 280
    for text, o, g in zip(texts, owner.tolist(), gram, strict=True):
        wanted = {
            i for i, t in enumerate(tests) for n in (3, 4) if n == min(4, len(words(t))) and runs(t, n) & runs(text, n)
        }
        assert (o in wanted and tuple(g.split()) in runs(tests[o], len(g.split())) & runs(text, len(g.split()))) or (
            o,
            g,
            wanted,
        ) == (-1, "", set())
    assert looked.tolist() == [sum(max(len(words(t)) - n + 1, len(words(t)) > 0) for n in lengths) for t in texts]


def test_the_default_is_thirteen_words():
    said = [f"w{i}" for i in range(40)]
    test = Data.of([" ".join(said)])
    data = Data.of(["So: " + ", ".join(said[10 : 10 + k]).upper() + " indeed" for k in (12, 13)])
    kept = Decontaminate(tests=(test,))(data)
    assert kept.ids.tolist() == [0] and kept.dropped()["test_gram"].to_pylist() == [" ".join(said[10:23])]


def test_columns_say_which_test_row_and_which_words():
    first, second = Data.of(["x " * 9, "one two three four"]), Data.of(["y", "a b c d e"]).take([1])
    data = Data.of(["no hit at all", "ONE, two three four five", "z a b c d e z", ""])
    method = Decontaminate(tests=(first, second), names=("quiz", "exam"), words=5, least=4)
    kept = method(data)
    gone = kept.dropped()
    assert kept.ids.tolist() == [0, 3] and set(kept["test_set"].to_pylist()) == {""} and (kept["test_row"] == -1).all()
    assert gone["test_set"].to_pylist() == ["quiz", "exam"] and gone["test_row"].tolist() == [1, 1]
    assert gone["test_gram"].to_pylist() == ["one two three four", "a b c d e"] and "test_chance" not in gone.columns


def test_the_estimate_of_false_hits():
    assert chance(1, 100, np.array([0, 1, 10])) == pytest.approx([0, 0.02, 1 - 0.98**10])
    rng = np.random.default_rng(0)
    tests, data, control = (Data.of(some(rng, n, 14)) for n in (20, 2000, 2000))  # nothing leaked: all hits are chance
    kept = Decontaminate(tests=(tests,), words=4, least=4, control=control)(data)
    expected, dropped = kept.table["test_chance"].to_numpy().sum(), 2000 - len(kept)
    assert dropped > 5 and 0.5 < expected / dropped < 2


def test_odd_rows_and_bad_fields(monkeypatch):
    long = " ".join(f"w{i}" for i in range(200_000))
    assert len(Decontaminate(tests=(Data.of([long[-400:]]),))(Data.of([long, "x"]))) == 1
    same = Data.of(["a b c d e f g h i"] * 3000)
    assert len(Decontaminate(tests=(same.take([0]),))(same)) == 0
    for fields, said in (
        ({"tests": ()}, "at least one set"),
        ({"tests": (same,), "names": ("a", "b")}, "a name for each"),
        ({"tests": (same,), "least": 20}, "least=20"),
        ({"tests": (Data.of(["a b"]),)}, "none of the 1 test rows"),
        ({"tests": (Data.of({"label": [1]}),)}, "tests"),
        ({"tests": (same,), "column": "story"}, "story"),
    ):
        with pytest.raises(ValueError, match=said):
            Decontaminate(**fields)(same)


def measure(seed: int, arm: str) -> float:
    """The share of rows left that hold a test row, most of them inside other text."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"w{i}" for i in range(300)])
    texts = [" ".join(rng.choice(vocabulary, 60)) for _ in range(200)]
    tests = [" ".join(rng.choice(vocabulary, 20)) for _ in range(30)]
    leaked = [t if k % 3 == 0 else f"{texts[k][:80]} {t.upper()}! {texts[k][80:]}" for k, t in enumerate(tests)]
    order = rng.permutation(230)
    data = Data.of([*texts, *leaked]).take(order)
    if arm == "method":
        data = Decontaminate(tests=(Data.of(tests),))(data)
    else:
        data = data.where([t not in set(tests) for t in data.text()])
    return float((data.ids >= 200).mean())


CLAIM = Claim(
    method="decontaminate",
    world="leaks",
    rival="dropping the rows that equal a test row",
    quantity="share of rows left that hold a test row",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
