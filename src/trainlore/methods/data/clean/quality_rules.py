from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives import minhash
from trainlore.runs import Run
from trainlore.verbs import Curate, method

CHARACTERS, ROWS = 1 << 19, 4096  # looked at together
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
    `top_n` is the share of the characters that the most frequent n-gram takes up, if it comes twice, `repeated_n` that
    of the words in n-grams that came before, for n in `grams` (at most 4: top). Blank lines and paragraphs do not count.
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
    found["braces"], found["newlines"] = (
        _count(code == 123, stop),
        (_count(code == 10, stop) - 2 * (np.arange(n) > 0)) / tokens,
    )
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


def chunks(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of texts, of a bounded number of rows and characters."""
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if len(held) == ROWS or size > CHARACTERS:
            yield held
            held, size = [], 0
    if held:
        yield held


@method(
    name="quality_rules",
    title="Rules of quality (Gopher, C4, FineWeb)",
    paper="arXiv:2112.11446",
    lit=["p198", "p189"],
    family="data/clean",
    year=2021,
    tier="core",
    status="stable",
    code="huggingface/datatrove",
)
class QualityRules(Curate):
    """Drop the rows whose text breaks a rule of form: too short, too repetitive, too few sentences, and so on.

    ## What it does
    Counts words, marks, lines and repeated runs of words of each text, and drops it at the first rule that it breaks.
    Each field is a rule and its default the published number; none (or an empty tuple) turns it off.

        drop x  iff  stat(x) < min_stat  or  stat(x) > max_stat   for some rule

    The column `quality_rule` names the first rule broken ("" for kept rows), in the order of the fields, and
    `quality_value` is what was counted there (NaN for kept rows).

    ## Claim
    Over 28 models of 1.5 B weights, filters of quality help downstream although they take data away, filters of
    toxicity cost ability, no filter is best for every end, and what a filter does cannot be foretold from what the text
    looks like: so thresholds are fields, and a race decides. A survey of 444 data sets has filtering as one of five
    steps of preparation, beside collection, deduplication, standardization and review.

    ## Cost
    One pass over the text on one core, no model. Memory does not grow with the rows; a text of 10 MB takes 1 GiB while
    it is looked at.

    ## Fields worth tuning
    Look at `quality_rule` of what was dropped, rule by rule, before trusting any of them on text that is not of the
    web.

    ## Watch out
    The numbers are for whole English web pages. Short texts break `min_words` and `min_sentences`, code and poems
    `min_ended_lines` and `max_braces`, other languages `min_stop_words` (give their words), and scripts without blanks
    nearly everything: a phrase is one word there.

    ## Differs from the paper
    Words are runs without white space, so that marks count to their word; the pipeline that published FineWeb splits
    them off with a tokenizer for each language. Words in repeated n-grams are counted once each wherever they overlap,
    there by a greedy walk. An n-gram that comes once is no repetition however short the text. C4's rules that edit
    lines are left out, and its list of bad words.

    ## See also
    `near_duplicates` for repetition between rows; `language_filter` first, where languages are mixed.
    """

    min_words: float | None = 50
    """Words with a letter or digit (Gopher)."""
    min_word_length: float | None = 3
    """Mean length of those words (Gopher)."""
    min_letters: float | None = 0.8
    """Share of all words that have a letter (Gopher)."""
    min_stop_words: float | None = 2
    """Different words of `stop_words` (Gopher)."""
    min_sentences: float | None = 5
    """Words that end in a mark that ends sentences (C4)."""
    min_ended_lines: float | None = 0.12
    """Share of lines that end in such a mark (FineWeb)."""
    max_words: float | None = 100_000
    """Words with a letter or digit (Gopher)."""
    max_word_length: float | None = 10
    """Mean length of those words (Gopher)."""
    max_hashes: float | None = 0.1
    """Hash signs a word (Gopher)."""
    max_ellipses: float | None = 0.1
    """Ellipses a word (Gopher)."""
    max_bullets: float | None = 0.9
    """Share of lines that begin with a bullet or a hyphen (Gopher)."""
    max_ellipsis_lines: float | None = 0.3
    """Share of lines that end in an ellipsis (Gopher)."""
    max_repeated_lines: float | None = 0.3
    """Share of lines that came before (Gopher)."""
    max_repeated_paragraphs: float | None = 0.3
    """Share of paragraphs that came before (Gopher)."""
    max_repeated_line_text: float | None = 0.2
    """Share of characters in lines that came before (Gopher)."""
    max_repeated_paragraph_text: float | None = 0.2
    """Share of characters in paragraphs that came before (Gopher)."""
    max_top_grams: tuple[float, ...] = (0.2, 0.18, 0.16)
    """Share of characters in the most frequent run of 2, 3 and 4 words (Gopher)."""
    max_repeated_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """Share of characters in runs of 5, 6, ... 10 words that came before (Gopher)."""
    max_braces: float | None = 0
    """Curly brackets (C4)."""
    max_lorem_ipsum: float | None = 0
    """Times that it says lorem ipsum (C4)."""
    max_short_lines: float | None = 0.67
    """Share of lines of up to 30 characters (FineWeb)."""
    max_repeated_characters: float | None = 0.01
    """Share of characters in lines that came before, again (FineWeb)."""
    max_newlines: float | None = 0.3
    """Line breaks a word (FineWeb)."""
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    """The words that `min_stop_words` counts, of letters and digits alone."""
    column: str = "text"
    """The text column."""

    null = None  # all rules off is 23 fields
    tiny = {"world": "text", "min_words": 15, "min_stop_words": None, "min_sentences": None, "min_ended_lines": None,
            "max_top_grams": [], "max_short_lines": None}  # fmt: skip

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.column, who="quality_rules")
        low = {"words": self.min_words, "word_length": self.min_word_length, "letters": self.min_letters,
               "stop_words": self.min_stop_words, "sentences": self.min_sentences, "ended_lines": self.min_ended_lines}  # fmt: skip
        high = {"words": self.max_words, "word_length": self.max_word_length, "hashes": self.max_hashes,
                "ellipses": self.max_ellipses, "bullets": self.max_bullets, "ellipsis_lines": self.max_ellipsis_lines,
                "repeated_lines": self.max_repeated_lines, "repeated_paragraphs": self.max_repeated_paragraphs,
                "repeated_line_text": self.max_repeated_line_text,
                "repeated_paragraph_text": self.max_repeated_paragraph_text,
                **{f"top_{n}": v for n, v in enumerate(self.max_top_grams, 2)},
                **{f"repeated_{n}": v for n, v in enumerate(self.max_repeated_grams, 5)},
                "braces": self.max_braces, "lorem_ipsum": self.max_lorem_ipsum, "short_lines": self.max_short_lines,
                "repeated_characters": self.max_repeated_characters, "newlines": self.max_newlines}  # fmt: skip
        rules = [(f"min_{k}", k, v, -1) for k, v in low.items() if v is not None]
        rules += [(f"max_{k}", k, v, 1) for k, v in high.items() if v is not None]
        if len(self.max_top_grams) > 3:
            raise Bad(f"max_top_grams={self.max_top_grams}: give at most three shares, of runs of 2, 3 and 4 words")
        if wrong := [f"{name}={v}" for name, _, v, _ in rules if not v >= 0]:
            raise Bad(f"{wrong[0]}: a rule is a number from 0 up, or none")
        grams = [int(k.split("_")[1]) for _, k, _, _ in rules if k.split("_")[-1].isdigit()]
        words = self.stop_words if self.min_stop_words is not None else ()
        broken, value = [], []
        for part in chunks(data.text(self.column)):
            stats = statistics(part, words, grams)
            stats["repeated_characters"] = stats["repeated_line_text"]
            first, seen = np.full(len(part), len(rules)), np.full(len(part), np.nan)
            for r, (_, stat, limit, side) in reversed(list(enumerate(rules))):
                bad = side * stats[stat] > side * limit
                first, seen = np.where(bad, r, first), np.where(bad, stats[stat], seen)
            broken.append(first)
            value.append(seen)
        rule = np.concatenate(broken)
        names = np.array([*(name for name, *_ in rules), ""], dtype=object)
        return data.with_(quality_rule=names[rule].tolist(), quality_value=np.concatenate(value)).where(
            rule == len(rules)
        )
