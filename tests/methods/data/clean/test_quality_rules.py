"""Rules of quality: the published numbers, which rule is named, and odd texts."""

import re

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean import quality_rules
from trainlore.methods.data.clean.quality_rules import QualityRules
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run

STOP = ("the", "be", "to", "of", "and", "that", "have", "with")


def test_the_published_numbers():
    m = QualityRules()
    assert (m.min_words, m.max_words, m.min_word_length, m.max_word_length) == (50, 100_000, 3, 10)
    assert m.max_top_grams == (0.2, 0.18, 0.16) and m.max_repeated_grams == (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    assert (m.min_ended_lines, m.max_short_lines, m.max_repeated_characters, m.max_newlines) == (0.12, 0.67, 0.01, 0.3)


def prose(rng, sentences=12):
    """Sentences of a dozen words, five of them stop words."""
    rare = np.array([f"word{i}" for i in range(300)])
    made = [[*rng.choice(rare, 7), *STOP[:5]] for _ in range(sentences)]
    return " ".join(" ".join(rng.permutation(words)).capitalize() + "." for words in made)


JUNK = {
    "min_words": lambda t, r: t[:80],
    "max_word_length": lambda t, r: t.replace(" ", " averyverylongone-"),
    "min_letters": lambda t, r: t + " 12 34 ;" * 30,
    "min_stop_words": lambda t, r: re.sub(r"\b(the|be|to|of|and)\b", "zzz", t.lower()),
    "min_sentences": lambda t, r: t.replace(".", ""),
    "max_hashes": lambda t, r: t.replace(" ", " #"),
    "max_repeated_lines": lambda t, r: "\n".join([t, *["Read more of this here now."] * 3]),
    "max_top_3": lambda t, r: t.replace(". ", ". Click here now click here now click here now "),
    "max_braces": lambda t, r: t.replace(" ", " {", 1),
    "max_lorem_ipsum": lambda t, r: t + " Lorem Ipsum.",
    "max_newlines": lambda t, r: t.replace(". ", ".\n\n\n\n\n"),
}  # fmt: skip


@pytest.mark.parametrize("rows", [1, 3, 4096])
def test_the_first_rule_broken_is_named_and_stands(rows, monkeypatch):
    monkeypatch.setattr(quality_rules, "ROWS", rows)
    rng = np.random.default_rng(0)
    texts = [prose(rng), *(make(prose(rng), rng) for make in JUNK.values()), ""]
    kept = QualityRules(max_short_lines=None)(Data.of(texts))
    assert (
        kept.ids.tolist() == [0] and kept["quality_rule"].to_pylist() == [""] and np.isnan(kept["quality_value"]).all()
    )
    gone = kept.dropped()
    assert gone["quality_rule"].to_pylist() == [*JUNK, "min_words"]
    assert (
        gone["quality_value"][0] < 50 and gone["quality_value"][-1] == 0 and not np.isnan(gone["quality_value"]).any()
    )


def test_a_rule_can_be_turned_off():
    rows = Data.of(["Only {few} words."])
    off = {
        "min_words": None,
        "min_stop_words": None,
        "min_sentences": None,
        "max_braces": None,
        "max_short_lines": None,
    }
    assert len(QualityRules(**off)(rows)) == 1
    assert QualityRules(**{**off, "max_braces": 0})(rows).dropped()["quality_rule"].to_pylist() == ["max_braces"]


def test_odd_rows_and_bad_fields():
    long = prose(np.random.default_rng(0), 5000)
    same = [prose(np.random.default_rng(0))] * 500
    rules = QualityRules(max_top_grams=(), max_repeated_grams=(0.5,))
    assert len(rules(Data.of([long, *same]))) == 501
    for fields, said in (
        ({"min_words": -1}, "min_words=-1"),
        ({"max_top_grams": (1,) * 4}, "max_top_grams"),
        ({"stop_words": ("that's",)}, "that's"),
        ({"column": "story"}, "story"),
    ):
        with pytest.raises(ValueError, match=said):
            QualityRules(**fields)(Data.of(["x"]))


def measure(seed: int, arm: str) -> float:
    """The share of made-up junk among the rows left."""
    rng = np.random.default_rng(seed)
    makers = list(JUNK.values())
    junk = rng.random(120) < 0.5
    data = Data.of([makers[rng.integers(len(makers))](prose(rng), rng) if j else prose(rng) for j in junk])
    kept = QualityRules()(Run(seed), data) if arm == "method" else RandomRows(keep=0.5)(Run(seed), data)
    return float(junk[kept.ids].mean())


CLAIM = Claim(
    method="quality_rules",
    world="prose",
    rival="random_rows",
    quantity="share of spoilt texts among the rows left",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
