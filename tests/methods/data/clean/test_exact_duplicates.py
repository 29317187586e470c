"""Exact duplicates: the first of each text stays."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean.exact_duplicates import ExactDuplicates, first_of_kind
from trainlore.nouns import Data
from trainlore.worlds.tiny import world

TEXTS = ["One  two", "x", "one two\n", "\uff2fne two", "x ", "", "y", "x"]


def test_first_of_kind_is_the_textbook_s():
    texts = [str(i) for i in np.random.default_rng(0).integers(0, 9, 50)]
    assert first_of_kind(texts).tolist() == [texts.index(t) for t in texts]


def test_forms_of_one_text_are_one():
    kept = ExactDuplicates()(Data.of(TEXTS))
    assert list(kept.text()) == ["One  two", "x", "", "y"]
    assert list(ExactDuplicates(strict=True)(Data.of(TEXTS)).text()) == [*TEXTS[:7]]


def test_dropped_rows_name_the_row_that_stays():
    given = Data.of(TEXTS).take([7, 6, 4, 1])
    kept = ExactDuplicates()(given)
    assert kept.ids.tolist() == [7, 6]
    assert kept.table["copy_of"].to_pylist() == [None, 7, None, None, 7, None, -1, -1]  # nothing where it was not asked


def test_it_needs_text():
    with pytest.raises(ValueError, match="text"):
        ExactDuplicates()(Data.of({"label": [1]}))


def doubled(seed):
    data = world("text")["data"]
    rng = np.random.default_rng(seed)
    copies = [t.upper() + " " for t in data.take(rng.choice(len(data), 60, replace=False)).text()]
    return Data.of([*data.text(), *copies]).take(rng.permutation(len(data) + 60))


def measure(seed: int, arm: str) -> float:
    """The share of rows left whose text, but for case and blanks, is also another row's."""
    data = doubled(seed)
    if arm == "method":
        data = ExactDuplicates()(data)
    else:  # as many rows, at random
        data = data.take(np.random.default_rng(seed).permutation(len(data))[: len(ExactDuplicates()(data))])
    plain = [t.strip().lower() for t in data.text()]
    return 1 - len(set(plain)) / len(plain)


CLAIM = Claim(
    method="exact_duplicates",
    world="text",
    rival="random_rows",
    quantity="share of copies among the rows left",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
