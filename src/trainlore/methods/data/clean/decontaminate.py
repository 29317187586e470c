from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives import minhash
from trainlore.primitives.prose import chunks
from trainlore.runs import Run
from trainlore.verbs import Curate, method

WORD = re.compile("[0-9a-z\u0080-\U0010ffff]+")  # the words that `minhash.shingles` sees in lower case
ROWS, CHARACTERS = 4096, 1 << 22  # looked through at a time


class Index:
    """The n-grams of test rows: what length, which row, where in it."""

    def __init__(self, texts: Sequence[str], words: int, least: int):
        """Every run of `words` words of each text; of a text with fewer, down to `least`, the whole of it."""
        self.words = [WORD.findall(t.lower()) for t in texts]
        size = np.array([len(w) for w in self.words])
        self.looked_for = int((size >= least).sum())
        self.tables: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for n in np.unique(np.minimum(size[size >= least], words)).tolist():
            mine = np.flatnonzero(size == n) if n < words else np.flatnonzero(size >= words)
            hashes, offsets = minhash.shingles([texts[i] for i in mine], n)
            kinds, first = np.unique(hashes, return_index=True)
            owner = np.searchsorted(offsets, first, side="right") - 1
            self.tables[n] = kinds, mine[owner], first - offsets[owner]

    def hits(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray, list[str]]:
        """For each text the test row it shares an n-gram with, int64 (N,), -1 for none; how many of its n-grams were
        looked up, int64 (N,); the shared n-gram, "" for none. The words of a hit are compared, not only its hash."""
        owner, looked, gram = np.full(len(texts), -1), np.zeros(len(texts), np.int64), [""] * len(texts)
        for n, (kinds, rows, places) in sorted(self.tables.items(), reverse=True):
            hashes, offsets = minhash.shingles(texts, n)
            looked += np.diff(offsets)
            at = np.searchsorted(kinds, hashes).clip(max=len(kinds) - 1)
            hit = np.flatnonzero(kinds[at] == hashes)
            mine = np.searchsorted(offsets, hit, side="right") - 1
            mine, first = np.unique(mine, return_index=True)  # one hit a text is enough
            for i, k in zip(mine.tolist(), at[hit[first]].tolist(), strict=True):
                said = " ".join(self.words[rows[k]][places[k] : places[k] + n])
                if owner[i] < 0 and f" {said} " in f" {' '.join(WORD.findall(texts[i].lower()))} ":
                    owner[i], gram[i] = rows[k], said
        return owner, looked, gram


def chance(hits: int, looked: int, each: np.ndarray) -> np.ndarray:
    """How likely a clean row is to hit (N,), by how many n-grams of it are looked up (N,): 1 - (1 - q) ** each.

    Of `looked` n-grams of rows that cannot hold a test row, `hits` rows hit all the same; one more is counted, so that
    a small control is no proof of innocence: q = (hits + 1) / looked.
    """
    return 1 - (1 - min(1.0, (hits + 1) / max(1, looked))) ** each


@method(
    name="decontaminate",
    title="N-gram decontamination",
    family="data/clean",
    year=2020,
    tier="core",
    status="stable",
)
class Decontaminate(Curate):
    """Drop every row that shares a long run of words with a row of a test set.

    ## What it does
    All runs of `words` words of the test rows are collected, in lower case and without punctuation; a row of the data
    that holds one of them is dropped. A test row of fewer words, down to `least`, counts as one run.

        drop x  iff  grams_n(x) and union of grams_n(t) over all test rows t  share an element

    `test_set` names the set, `test_row` the id of the test row there (-1 for kept rows), `test_gram` the shared words
    ("" for kept rows). With a `control`, `test_chance` says how likely a clean row of the row's length is to hit, and
    its sum over all rows about how many are dropped by chance:

        q = (control rows that hit + 1) / n-grams of the control,     test_chance = 1 - (1 - q) ** n-grams of the row

    ## Claim
    None of its own. 13 words are what large models were decontaminated with, from GPT-3 on; a common pipeline takes 12.

    ## Cost
    One pass over the text for each length of n-gram, `words` and those of shorter test rows; tests are held in memory.

    ## Fields worth tuning
    `words`: fewer find reworded copies and common phrases alike. Give a `control` before you lower it.

    ## Watch out
    Test rows of fewer than `least` words are not looked for. Rewording, translation and numbers written otherwise
    escape. A hit is no proof: both rows may quote a third, and a `test_gram` that comes again and again is boilerplate.
    The whole row goes: cut long rows first. The control must be rows like the data that cannot hold the tests, such as
    older ones: rows of the data itself would count leaks as chance. In scripts without blanks a phrase is one word.

    ## Differs from the paper
    GPT-3 cut a window around the hit; here the row is dropped, and a hit is compared word by word, not only hashed.

    ## See also
    `near_duplicates` within one set of rows; `even_pieces` to cut rows first.
    """

    tests: tuple[Data, ...]
    """Test sets whose rows must not be trained on."""
    names: tuple[str, ...] = ()
    """Their names for the column `test_set`; none: test 1, test 2, ..."""
    words: int = 13
    """Words of a run that a row must not share with a test row."""
    least: int = 8
    """Test rows of fewer words are not looked for."""
    control: Data | None = None
    """Rows like the data that cannot hold a test row, for the estimate of false hits."""
    column: str = "text"
    """The text column, in the data, the tests and the control."""

    null = None  # there is always something to look for
    tiny = {"world": "text", "tests": ["$held_out"], "words": 4, "least": 4, "control": "$target"}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.column, who="decontaminate")
        if not 1 <= self.least <= self.words:
            raise Bad(f"least={self.least}, words={self.words}: give 1 <= least <= words")
        if not self.tests or len(self.names) not in (0, len(self.tests)):
            raise Bad(f"tests: give at least one set; names={self.names}: give a name for each, or none")
        texts: list[str] = []
        for test in self.tests:
            test.need(self.column, who="decontaminate's `tests`")
            texts += test.text(self.column)
        index = Index(texts, self.words, self.least)
        if not index.looked_for:
            raise Bad(f"least={self.least}: none of the {len(texts)} test rows has that many words; lower it")
        found = [index.hits(part) for part in chunks(data.text(self.column), ROWS, CHARACTERS)]
        owner, looked = (np.concatenate([f[k] for f in found]) for k in (0, 1))
        clean, which = owner < 0, np.repeat(np.arange(len(self.tests)), [len(t) for t in self.tests])
        names = np.array([*(self.names or (f"test {i + 1}" for i in range(len(self.tests)))), ""], dtype=object)
        made = {
            "test_set": names[np.where(clean, -1, which[owner])].tolist(),
            "test_row": np.where(clean, -1, np.concatenate([t.ids for t in self.tests])[owner]),
            "test_gram": [gram for f in found for gram in f[2]],
        }
        if self.control is not None:
            self.control.need(self.column, who="decontaminate's `control`")
            seen = [index.hits(part)[:2] for part in chunks(self.control.text(self.column), ROWS, CHARACTERS)]
            hits, grams = sum(int((s[0] >= 0).sum()) for s in seen), sum(int(s[1].sum()) for s in seen)
            made["test_chance"] = chance(hits, grams, looked)
        return data.with_(**made).where(clean)
