from __future__ import annotations

import re
from itertools import pairwise

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Curate, method

GONE = "parents", "piece_rule", "input_ids", "labels"  # columns that are of the whole text
WORD = re.compile(r"\S+")
ENDS = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u2019\u201d)\]]*(?!\S)")


def cuts(ends: np.ndarray, words: int, slack: float = 0.25) -> np.ndarray:
    """Where to cut a text: word counts int64 (K + 1,), from 0 to the number of words.

    `ends` bool (W,) says which words end a sentence. The text falls into the whole number of pieces nearest to
    W / words, as even as can be; a cut moves to the nearest sentence end within `slack * words` words, if there is
    one, and the earlier of two as near.
    """
    n = len(ends)
    ideal = np.arange(1, max(1, round(n / words))) * n / max(1, round(n / words))
    stops = np.flatnonzero(ends) + 1
    cut = np.round(ideal).astype(np.int64)
    if len(stops) and len(cut):
        right = np.clip(np.searchsorted(stops, ideal), 0, len(stops) - 1)
        left = np.maximum(right - 1, 0)
        near = np.where(np.abs(stops[left] - ideal) <= np.abs(stops[right] - ideal), stops[left], stops[right])
        cut = np.where(np.abs(near - ideal) <= slack * words, near, cut)
    return np.unique(np.concatenate([[0], cut, [n]]))


def pieces(text: str, words: int, slack: float = 0.25) -> list[tuple[str, int]]:
    """The text cut at `cuts`: each piece, white space inside it and all, and its number of words; one of none of no text."""
    spans = [m.span() for m in WORD.finditer(text)]
    ends = np.isin([b for _, b in spans], [m.end() for m in ENDS.finditer(text)])
    at = cuts(ends, words, slack).tolist()
    return [(text[spans[a][0] : spans[b - 1][1]], b - a) for a, b in pairwise(at)] or [("", 0)]


@method(
    name="even_pieces",
    title="Cutting texts into even pieces",
    family="data/clean",
    year=2020,
    tier="core",
    status="stable",
)
class EvenPieces(Curate):
    """Cut long texts into pieces of about the same number of words, at sentence ends where it can.

    ## What it does
    A text of W words becomes the whole number of pieces nearest to W / words, cut at even distances; each cut moves
    to the nearest sentence end within `slack * words` words. Pieces of fewer than `least` words are dropped, with the
    reason in the column `piece_rule` ("" for kept ones). Other columns are copied from the text a piece was cut from,
    whose id is in `parents`.

        k = max(1, round(W / words)),   cut_i = i * W / k,   i = 1 .. k - 1

    ## Claim
    None of its own: the plain way to give every row about the same weight, for selectors that rank rows.

    ## Cost
    One pass over the text.

    ## Fields worth tuning
    `words` to the context of the model that reads the pieces; `slack = 0` cuts at exact distances.

    ## Watch out
    A sentence ends at a word that ends in a mark such as a full stop, so abbreviations end one too. Texts of up to
    one and a half times `words` stay whole.

    ## See also
    `best_fit_packing`, which goes the other way: from texts to rows of one length.
    """

    words: int = 200
    """Words a piece should have."""
    least: int = 20
    """Pieces with fewer words are dropped."""
    slack: float = 0.25
    """How far, as a share of `words`, a cut may move to end a sentence."""
    column: str = "text"
    """The text column to cut."""

    tiny = {"world": "text", "words": 8, "least": 2}

    def __call__(self, run: Run, data: Data) -> Data:
        if self.words < 1:
            raise Bad(f"even_pieces: words must be at least 1, got {self.words}")
        if not 0 <= self.slack <= 0.5:
            raise Bad(f"even_pieces: slack must lie in 0..0.5, so that cuts keep their order, got {self.slack}")
        data.need(self.column, who="even_pieces")
        made: list[tuple[str, int]] = []
        count = np.zeros(len(data), np.int64)
        for i, text in enumerate(data.text(self.column)):
            mine = pieces(text, self.words, self.slack)
            made += mine
            count[i] = len(mine)
        short = f"fewer than {max(1, self.least)} words"
        rule = ["" if n >= max(1, self.least) else short if n else "no text" for _, n in made]
        kept = np.array([not why for why in rule])
        if not kept.any():
            raise Bad(f"even_pieces: no text has {max(1, self.least)} words; lower `least`")
        origin = np.repeat(np.arange(len(data)), count)
        rest = data.without(self.column).take(origin).arrow()  # the whole text is not copied once a piece
        columns = {c: rest[c] for c in rest.column_names if c not in GONE}
        rows = {self.column: [text for text, _ in made], **columns, "piece_rule": rule}
        return data.new(rows, parents=data.ids[origin]).where(kept)
