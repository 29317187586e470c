from __future__ import annotations

import copy
import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@functools.cache
def _whole() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise Bad("language_filter needs py3langid: pip install 'trainlore[language]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identifier(among: Sequence[str] = ()) -> Any:
    """py3langid's identifier that gives probabilities, of these languages only if any are named."""
    made = copy.copy(_whole())
    if strange := sorted(set(among) - set(made.labels)):
        raise Bad(f"language {strange[0]!r} is not known; there are {', '.join(sorted(made.labels))}")
    if among:
        made.set_languages(among)
    return made


def shares(texts: Iterable[str], wanted: Sequence[str], among: Sequence[str] = ()) -> tuple[list[str], np.ndarray]:
    """The likeliest language of each text, a code of two or three letters, and the probability that it is one of those
    wanted, float64 (N,). A text without a letter has the language "" and probability 0."""
    known = identifier(among)
    language, chance = [], []
    for text in texts:
        ranked = known.rank(text) if any(map(str.isalpha, text)) else [("", 0.0)]
        language.append(ranked[0][0])
        chance.append(sum(p for code, p in ranked if code in wanted))
    return language, np.array(chance)


@method(
    name="language_filter",
    title="Filter of languages",
    family="data/clean",
    year=2012,
    tier="llm",
    status="stable",
    code="adbar/py3langid",
)
class LanguageFilter(Curate):
    """Keep the rows whose text is in one of the languages wanted.

    ## What it does
    A naive Bayes classifier over runs of bytes, py3langid, gives the probability of each of some 140 languages; a row
    is kept if those wanted have enough of it together.

        keep x  iff  sum over wanted languages of p(language | text) >= sure

    The column `language` holds the likeliest language ("" where there is no letter) and `language_chance` the sum.

    ## Claim
    None of its own. FineWeb keeps pages that another classifier calls English with 0.65 or more.

    ## Cost
    One pass over the first `characters` of each text, on one core: measured here, 35,000 fragments of some words or
    11,000 sentences a second. The library is an extra of 5 MB with its model inside, and nothing is fetched when it
    runs.

    ## Fields worth tuning
    `among` when it is known what languages there can be: fewer are told apart better. `sure` lower for short texts.

    ## Watch out
    A few words are little to go by: of fragments of 1 to 8 words in seven languages 91% were told right, of whole
    sentences nearly all. (lingua, another library, told 95% of the fragments at 450 a second and 1.2 GiB.) Code and
    lists of names come out as any language. Only the beginning counts: a menu in one language and a page in another is
    of the first.

    ## See also
    `quality_rules`, whose stop words are of one language.
    """

    languages: tuple[str, ...] = ("en",)
    """The languages to keep, by their ISO 639 codes."""
    sure: float = 0.65
    """Least probability that a text is in one of them."""
    among: tuple[str, ...] = ()
    """Languages that there can be at all; none: all that are known."""
    characters: int = 2000
    """How much of the beginning of a text is looked at."""
    column: str = "text"
    """The text column."""

    null = {"sure": 0.0}
    tiny = {"world": "text", "languages": ["en", "hr"], "sure": 0.0001}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.column, who="language_filter")
        if not self.languages or not 0 <= self.sure <= 1 or self.characters < 1:
            raise Bad(
                f"languages={self.languages}, sure={self.sure}, characters={self.characters}: "
                "name a language, a probability from 0 to 1 and 1 character or more"
            )
        if self.among and (strange := set(self.languages) - set(self.among)):
            raise Bad(f"among={self.among}: {sorted(strange)[0]!r} is wanted and cannot be; add it")
        identifier(self.languages)  # a code that nobody knows is named before anything runs
        texts = (text[: self.characters] for text in data.text(self.column))
        language, chance = shares(texts, self.languages, self.among)
        return data.with_(language=language, language_chance=chance).where(chance >= self.sure)
