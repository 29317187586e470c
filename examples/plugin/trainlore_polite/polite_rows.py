from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def politeness(texts: Iterable[str], words: Iterable[str]) -> np.ndarray:
    """Share of each text's words that are one of these, without regard to case: float64 (N,); 0 where there is no word."""
    wanted = {word.casefold() for word in words}
    split = (re.findall(r"\w+", text.casefold()) for text in texts)
    return np.array([sum(w in wanted for w in found) / max(1, len(found)) for found in split], dtype=np.float64)


@method(
    name="polite_rows",
    title="Polite rows",
    family="data/select",
    year=2026,
    tier="core",
    status="draft",
)
class PoliteRows(Curate):
    """Keep the rows whose text says please and thank you most often.

    ## What it does
    Scores each row by the share of its words that are polite ones and keeps the highest-scoring share of the rows, in
    their order; among equals the earlier row stays.

        score(x) = #{words of x in `words`} / #{words of x}

    The column `politeness` stays on the data.

    ## Claim
    None: it shows how a method of another package looks.

    ## Cost
    One pass over the text.

    ## Fields worth tuning
    `words`, to the language of the rows.

    ## Watch out
    Rows that say "thank you" and nothing else win.

    ## See also
    `random_rows`, which any selector must beat.
    """

    words: tuple[str, ...] = ("please", "thank", "thanks", "kindly", "sorry", "welcome")
    """What counts as polite."""
    keep: float = 0.5
    """Share of the rows to keep, above 0 and at most 1."""

    null = {"keep": 1.0}
    tiny = {"world": "text", "words": ["bada", "bade", "bado"], "keep": 0.3}  # words of that world's made-up language

    def __call__(self, run: Run, data: Data) -> Data:
        data.need("text", who="polite_rows")
        if not 0 < self.keep <= 1:
            raise Bad(f"keep={self.keep} must be above 0 and at most 1: it is a share of the rows")
        score = politeness(data.text(), self.words)
        best = np.argsort(-score, kind="stable")[: max(1, round(self.keep * len(data)))]
        return data.with_(politeness=score).take(np.sort(best))
