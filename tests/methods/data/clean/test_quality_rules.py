"""Rules of quality: every statistic by a loop, which rule is named, and odd texts."""

import re
from collections import Counter

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean import quality_rules
from trainlore.methods.data.clean.quality_rules import CLOSING, ENDS, QualityRules, statistics
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run

STOP = ("the", "be", "to", "of", "and", "that", "have", "with")
GRAMS = (2, 3, 4, 5, 6, 7, 8, 9, 10)


def by_hand(text):
    tokens, n = text.split(), max(1, len(text))
    real = [t for t in tokens if any(c.isalnum() for c in t)]
    ended = [(t[:-1] if t[-1] in CLOSING and len(t) > 1 else t)[-1] in ENDS for t in tokens]
    count, low = max(1, len(tokens)), text.lower()
    paragraphs = [[w.strip() for w in p.split("\n")] for p in re.split(r"\n(?:[^\S\n]*\n)+", text) if p.strip()]
    lines = [line for p in paragraphs for line in p if line]
    whole = [p.strip() for p in re.split(r"\n(?:[^\S\n]*\n)+", text) if p.strip()]

    def share(test):
        return sum(map(bool, map(test, lines))) / max(1, len(lines))

    found = {
        "words": len(real),
        "word_length": sum(map(len, real)) / max(1, len(real)),
        "letters": sum(any(c.isalpha() for c in t) for t in tokens) / count,
        "sentences": sum(ended),
        "hashes": text.count("#") / count,
        "ellipses": (sum(len(r) // 3 for r in re.findall(r"\.+", text)) + text.count("\u2026")) / count,
        "braces": text.count("{"),
        "newlines": text.count("\n") / count,
        "lorem_ipsum": low.count("lorem ipsum"),
        "stop_words": sum(bool(re.search(rf"\b{w}\b", low)) for w in STOP),
        "bullets": share(lambda s: s[0] in "-\u2022"),
        "ellipsis_lines": share(lambda s: s.endswith(("...", "\u2026"))),
        "ended_lines": share(lambda s: (s[:-1] if s[-1] in CLOSING and len(s.split()[-1]) > 1 else s)[-1] in ENDS),
        "short_lines": share(lambda s: len(s) <= 30),
    }
    for name, things in (("line", lines), ("paragraph", whole)):
        again = [t for i, t in enumerate(things) if t in things[:i]]
        found[f"repeated_{name}s"] = len(again) / max(1, len(things))
        found[f"repeated_{name}_text"] = sum(map(len, again)) / n
    spans = [m.span() for m in re.finditer(r"\S+", text)]
    for g in GRAMS:
        grams = [tuple(tokens[i : i + g]) for i in range(len(tokens) - g + 1)]
        if g <= 4:
            (best, times), *_ = Counter(grams).most_common(1) or [((), 0)]
            at = grams.index(best) if times > 1 else 0
            found[f"top_{g}"] = times * (spans[at + g - 1][1] - spans[at][0]) / n if times > 1 else 0.0
        else:
            hit = {i + k for i, gram in enumerate(grams) if gram in grams[:i] for k in range(g)}
            found[f"repeated_{g}"] = sum(len(tokens[i]) for i in hit) / n
    return found


def some_texts(rng, n):
    bits = ["the", "And", "that's", "x7", "12", "#", "...", "end.", 'said."', "?", "-", "\u2022 of", "\u2026", "{", "\u4e2d\u6587\u3002",
            "Lorem ipsum", "a b c d e f", "\u0130f", "-- to", "(with)", ".."]  # fmt: skip
    gaps = [" ", " ", " ", "\n", "\n\n", "\n \n", "  ", "\t"]
    return [
        "".join(b + g for b, g in zip(rng.choice(bits, k), rng.choice(gaps, k), strict=True))
        for k in rng.integers(0, 60, n)
    ]


def test_every_statistic_is_that_of_a_loop():
    texts = ["", " \n ", "\n\n\n", ".", *some_texts(np.random.default_rng(0), 150)]
    found = statistics(texts, STOP, GRAMS)
    for i, text in enumerate(texts):
        for name, value in by_hand(text).items():
            assert found[name][i] == pytest.approx(value), (name, text)


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
    world="made-up prose, half of it spoilt in one of eleven ways",
    rival="random_rows",
    quantity="share of spoilt texts among the rows left",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
