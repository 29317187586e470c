from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import numpy as np

from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def normalise(text: str) -> str:
    """Text without what the eye passes over: compatibility forms, case and the amount of white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def first_of_kind(texts: Iterable[str]) -> np.ndarray:
    """Position of the first text with the same 128-bit hash, int64 (N,): a text's own where it is the first."""
    digest = b"".join(hashlib.blake2b(t.encode("utf-8", "replace"), digest_size=16).digest() for t in texts)
    _, first, kind = np.unique(np.frombuffer(digest, "V16"), return_index=True, return_inverse=True)
    return first[kind.reshape(-1)].astype(np.int64)


@method(
    name="exact_duplicates",
    title="Exact deduplication",
    family="data/clean",
    year=2021,
    tier="core",
    status="stable",
)
class ExactDuplicates(Curate):
    """Drop every row whose text has been seen before.

    ## What it does
    Hashes each text to 128 bits and keeps the first row of each hash, in table order. With `strict` off the text is
    first brought to one form: Unicode compatibility forms, lower case, single blanks.

        keep(i)  iff  hash(form(text_i)) != hash(form(text_j)) for all j < i

    The column `copy_of` holds the id of the row that was kept in a dropped row's place, -1 for kept rows.

    ## Claim
    None of its own: the trivial baseline of deduplication. Two different texts collide with probability below
    1e-18 in ten billion rows.

    ## Cost
    One pass over the text, sixteen bytes of memory a row.

    ## Watch out
    Run it before splitting into training and test rows, or duplicates straddle the split. Empty texts are all alike
    and collapse to one.

    ## See also
    `near_duplicates` for texts that differ by a few words.
    """

    column: str = "text"
    """The text column that decides."""
    strict: bool = False
    """Compare the raw bytes instead of the normalised text."""

    tiny = {"world": "text"}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.column, who="exact_duplicates")
        texts = data.text(self.column)
        first = first_of_kind(texts if self.strict else map(normalise, texts))
        own = first == np.arange(len(data))
        return data.with_(copy_of=np.where(own, -1, data.ids[first])).where(own)
