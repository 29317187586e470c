"""What can be counted in texts: words, marks, lines, paragraphs, runs of words that come again; a chunk at a time."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from trainlore.primitives import minhash

__all__ = ["CLOSING", "ENDS", "chunks", "statistics"]

ENDS = ".!?\u2026\u3002\uff01\uff1f\uff0e\uff61\u061f\u06d4\u0589\u0964\u0965\u104a\u104b\u1362\u17d4"
CLOSING = "\"'\u2019\u201d)]\u300d\u300f\uff09"
SPACE, LETTER, NUMBER, END, CLOSE = 1, 2, 4, 8, 16
_BASE, _STEP = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd


@functools.cache
def _kinds() -> np.ndarray:
    """For each code point, the sum of what it is."""
    kind = np.zeros(0x110000, np.uint8)
    for code in range(0x30000):  # nothing above is assigned but rare ideographs
        c = chr(code)
        kind[code] = SPACE * c.isspace() + LETTER * c.isalpha() + NUMBER * (c.isalnum() and not c.isalpha())
    kind[0x30000:0x32000] = LETTER
    kind[[ord(c) for c in ENDS]] += END
    kind[[ord(c) for c in CLOSING]] += CLOSE
    return kind


def _repeats(row: np.ndarray, key: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of things (M,) in rows: which are again in their row, bool (M,); the first of each kind, and how often (K,)."""
    whole = minhash._mix(key ^ minhash._mix(row.astype(np.uint64)))
    order = np.argsort(whole, kind="stable")
    new = np.r_[True, whole[order][1:] != whole[order][:-1]][: len(key)]
    again = np.ones(len(key), bool)
    again[order[new]] = False
    return again, order[new], np.diff(np.append(np.flatnonzero(new), len(key)))


def _sum(row: np.ndarray, value: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(row, value, n)


def statistics(
    texts: Sequence[str], stop_words: Sequence[str] = (), grams: Sequence[int] = ()
) -> dict[str, np.ndarray]:
    """What the rules look at, each (N,) float64 by name: of every text, in whole-array steps.

    Words are runs of what is no white space; of those with a letter or digit are counted `words` and `word_length`.
    `repeated_characters` is `repeated_line_text` with line breaks not counted; `top_n` the share of the characters that
    the most frequent n-gram takes up, if it comes twice; `repeated_n` that of words in n-grams that came before, for n
    in `grams` (at most 4: top). Blank lines and paragraphs do not count.
    """
    n, joined = len(texts), "\n\n".join(texts) + "\n\n"
    code = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), "<u4")
    size = np.array([len(t) for t in texts], np.int64)
    stop = np.cumsum(size + 2) - 2  # where each text ends; two breaks stand between
    kind = _kinds()[code]
    full = np.maximum(size, 1)
    # words
    inside = np.r_[False, (kind & SPACE) == 0, False]
    edge = np.flatnonzero(inside[1:] != inside[:-1])
    begin, end = edge[::2], edge[1::2]
    row = np.searchsorted(stop, begin, side="right")
    letters, solid = (np.cumsum(np.r_[0, (kind & which) > 0]) for which in (LETTER, LETTER + NUMBER))
    real = solid[end] > solid[begin]
    words, tokens = _sum(row, real, n), np.maximum(_sum(row, np.ones(len(row)), n), 1)
    last = end - 1 - ((kind[end - 1] & CLOSE > 0) & (end - begin > 1))  # the character before a closing quote
    ended = kind[last] & END > 0
    found = {
        "words": words,
        "word_length": _sum(row, (end - begin) * real, n) / np.maximum(words, 1),
        "letters": _sum(row, letters[end] > letters[begin], n) / tokens,
        "sentences": _sum(row, ended, n),
    }
    # marks
    dots = np.flatnonzero(np.diff(np.r_[0, code == 46, 0]))
    three = (dots[1::2] - dots[::2]) // 3
    ellipses = _sum(np.searchsorted(stop, dots[::2]), three, n) + _count(code == 0x2026, stop)
    found |= {"hashes": _count(code == 35, stop) / tokens, "ellipses": ellipses / tokens}
    gaps = _count(code == 10, stop) - 2 * (np.arange(n) > 0)  # but for those put in between texts
    found |= {"braces": _count(code == 123, stop), "newlines": gaps / tokens}
    lower = joined.replace("\u0130", "i").lower()  # the one letter whose small form is longer
    at = [m.start() for m in re.finditer("lorem ipsum", lower)]
    found["lorem_ipsum"] = np.bincount(np.searchsorted(stop, at), minlength=n).astype(float)
    small = np.frombuffer(lower.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    edge = np.flatnonzero(np.diff(np.r_[False, _kinds()[small] & (LETTER | NUMBER) > 0, False]))
    said, where = minhash._runs(small, edge[::2], edge[1::2], _BASE), np.searchsorted(stop, edge[::2])
    found["stop_words"] = np.zeros(n)
    for word in stop_words:
        letters_of = np.array([ord(c) for c in word.lower()], np.uint64)
        hash_of = minhash._runs(letters_of, np.array([0]), np.array([len(letters_of)]), _BASE)
        found["stop_words"] += np.bincount(where[said == hash_of], minlength=n) > 0
    # lines and paragraphs
    breaks = np.flatnonzero(code == 10)
    line = np.searchsorted(breaks, begin)
    starts = np.flatnonzero(np.r_[True, line[1:] != line[:-1]][: len(line)])
    ends = np.append(starts[1:], len(line))[: len(starts)] - 1
    left, right, home = begin[starts], end[ends], row[starts]
    lines = np.maximum(_sum(home, np.ones(len(home)), n), 1)
    dotted = (code[right - 1] == 0x2026) | ((code[right - 1] == 46) & (code[right - 2] == 46) & (code[right - 3] == 46))
    found |= {
        "bullets": _sum(home, np.isin(code[left], [45, 0x2022]), n) / lines,
        "ellipsis_lines": _sum(home, dotted, n) / lines,
        "ended_lines": _sum(home, ended[ends], n) / lines,
        "short_lines": _sum(home, right - left <= 30, n) / lines,
    }
    apart = np.flatnonzero(np.r_[True, np.diff(line[starts]) > 1][: len(starts)])
    part = left[apart], right[np.append(apart[1:], len(starts))[: len(apart)] - 1], home[apart]
    for name, (a, b, at_row) in (("line", (left, right, home)), ("paragraph", part)):
        again, _, _ = _repeats(at_row, minhash._runs(code.astype(np.uint64) + np.uint64(1), a, b, _BASE))
        found[f"repeated_{name}s"] = _sum(at_row, again, n) / np.maximum(_sum(at_row, np.ones(len(a)), n), 1)
        found[f"repeated_{name}_text"] = _sum(at_row, (b - a) * again, n) / full
    found["repeated_characters"] = found["repeated_line_text"] * full / np.maximum(size - gaps, 1)
    # n-grams
    word = minhash._mix(minhash._runs(code.astype(np.uint64) + np.uint64(1), begin, end, _BASE))
    for g in grams:
        first = np.flatnonzero(row[: max(0, len(row) - g + 1)] == row[g - 1 :])
        again, kinds, often = _repeats(row[first], minhash._runs(word, first, first + g, _STEP))
        if g <= 4:
            place = first[kinds]
            taken = (end[place + g - 1] - begin[place]) * often * (often > 1)
            best = np.lexsort((place, -often, row[place]))
            best = best[np.r_[True, row[place][best][1:] != row[place][best][:-1]][: len(best)]]
            found[f"top_{g}"] = _sum(row[place[best]], taken[best], n) / full
        else:
            mark = np.zeros(len(row) + 1)
            np.add.at(mark, first[again], 1)
            np.add.at(mark, first[again] + g, -1)
            found[f"repeated_{g}"] = _sum(row, (end - begin) * (np.cumsum(mark[:-1]) > 0), n) / full
    return found


def _count(where: np.ndarray, stop: np.ndarray) -> np.ndarray:
    return np.bincount(np.searchsorted(stop, np.flatnonzero(where), side="right"), minlength=len(stop) + 1)[
        : len(stop)
    ].astype(float)


def chunks(texts: Iterable[str], rows: int, characters: int) -> Iterator[list[str]]:
    """Lists of texts in order, none with more than `rows`; once one has more than `characters`, it is full."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if len(held) == rows or size > characters:
            yield held
            held, size = [], 0
    if held:
        yield held
