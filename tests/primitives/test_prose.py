"""Statistics of texts against loops, and chunks."""

import re
from collections import Counter

import numpy as np
import pytest

from trainlore.primitives.prose import CLOSING, ENDS, chunks, statistics

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
        if name == "line":
            found["repeated_characters"] = sum(map(len, again)) / max(1, len(text) - text.count("\n"))
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


@pytest.mark.parametrize("rows, characters", [(1, 9), (3, 10), (9, 5), (9, 99)])
def test_chunks_are_the_texts_in_order(rows, characters):
    texts = ["abc", "", "defghijkl", "m", "no", "p"]
    made = list(chunks(iter(texts), rows, characters))
    assert [t for part in made for t in part] == texts and max(map(len, made)) <= rows
    assert all(sum(map(len, part[:-1])) <= characters for part in made) and list(chunks([], 3, 9)) == []
