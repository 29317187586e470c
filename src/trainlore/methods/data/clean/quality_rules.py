from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives.prose import chunks, statistics
from trainlore.runs import Run
from trainlore.verbs import Curate, method

ROWS, CHARACTERS = 4096, 1 << 19  # looked at together


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

    The column `quality_rule` names the first rule broken, in the order of the fields ("" for kept rows),
    `quality_value` what was counted there (NaN for kept rows).

    ## Claim
    Over 28 models of 1.5 B weights, filters of quality help downstream although they take data away, filters of
    toxicity cost ability, none is best for every end, and what one does cannot be foretold from what the text looks
    like: so thresholds are fields, and a race decides. A survey of 444 data sets has filtering as one of five steps.

    ## Cost
    One pass over the text, no model. Memory does not grow with the rows; a text of 10 MB takes 1 GiB for a while.

    ## Fields worth tuning
    Look at `quality_rule` of what was dropped, rule by rule, before trusting any on text not of the web.

    ## Watch out
    Whole English web pages are meant: short texts break `min_words` and `min_sentences`, code `min_ended_lines` and
    `max_braces`, other languages `min_stop_words`, scripts without blanks nearly all (a phrase is one word there).

    ## Differs from the paper
    Words are runs without white space, marks and all; the pipeline that published FineWeb splits marks off by language.
    Words in repeated n-grams are counted once each wherever they overlap, there by a greedy walk. An n-gram that comes
    once is no repetition however short the text, blank lines are no lines, a value at a threshold passes. C4's rules
    that edit lines and its list of bad words are left out.

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
    """Share of characters, line breaks aside, in lines that came before (FineWeb)."""
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
        sides = ("min", low, -1), ("max", high, 1)
        rules = [(f"{end}_{k}", k, v, side) for end, all_, side in sides for k, v in all_.items() if v is not None]
        if len(self.max_top_grams) > 3:
            raise Bad(f"max_top_grams={self.max_top_grams}: give at most three shares, of runs of 2, 3 and 4 words")
        if wrong := [f"{name}={v}" for name, _, v, _ in rules if not v >= 0]:
            raise Bad(f"{wrong[0]}: a rule is a number from 0 up, or none")
        if strange := [w for w in self.stop_words if not w.isalnum()]:
            raise Bad(f"stop_words: {strange[0]!r} is never found; give words of letters and digits alone")
        grams = [int(k.split("_")[1]) for _, k, _, _ in rules if k.split("_")[-1].isdigit()]
        words = self.stop_words if self.min_stop_words is not None else ()
        found = []
        for part in chunks(data.text(self.column), ROWS, CHARACTERS):
            stats = statistics(part, words, grams)
            first, seen = np.full(len(part), len(rules)), np.full(len(part), np.nan)
            for r, (_, stat, limit, side) in reversed(list(enumerate(rules))):
                bad = side * stats[stat] > side * limit
                first, seen = np.where(bad, r, first), np.where(bad, stats[stat], seen)
            found.append((first, seen))
        rule, value = (np.concatenate(v) for v in zip(*found, strict=True))
        names = np.array([*(name for name, *_ in rules), ""], dtype=object)
        return data.with_(quality_rule=names[rule].tolist(), quality_value=value).where(rule == len(rules))
