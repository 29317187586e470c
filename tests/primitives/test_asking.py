"""Asking: kappa, answers from columns and rows, and who is told what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from trainlore.nouns import Data
from trainlore.primitives.asking import answers, filled, kappa


def test_kappa_is_agreement_beyond_chance():
    a, b = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 2, 2, 2])
    # agree on 5 of 6; by chance 2*2 + 2*1 + 2*3 of 36
    assert kappa(a, b) == pytest.approx((5 / 6 - 12 / 36) / (1 - 12 / 36))
    assert kappa(a, a) == 1 and kappa(np.zeros(4), np.zeros(4)) == 1 and kappa(np.array([0, 1]), np.array([1, 0])) == -1


def test_answers_are_of_a_column_or_of_rows_and_the_last_counts():
    pool = Data.of({"name": ["a", "b", "c"], "y": [2, 1, 0]}).take([2, 0])
    assert answers(pool, "y", None, "x") == {2: 0, 0: 2}
    told = Data.of({"row": ["c", "b", "c"], "label": [7, 8, 9]})
    assert answers(pool, told, "name", "x") == {2: 9}
    assert answers(pool, Data.of({"row": [0, 1], "label": [5, 6]}), None, "x") == {0: 5}
    for oracle, said in (("z", "'z' is no column"), ("name", "'name' holds .*not class numbers")):
        with pytest.raises(ValueError, match=said):
            answers(pool, oracle, None, "x")
    with pytest.raises(ValueError, match="'label' holds"):
        answers(pool, Data.of({"row": [0], "label": [0.5]}), None, "x")


def test_only_fields_there_are_are_filled():
    @dataclass(frozen=True)
    class Picker:
        count: int = 1
        model: str = ""

    assert filled(Picker(), {"count": 3, "labelled": "x"}) == Picker(count=3)


def test_a_row_is_asked_about_once():
    with pytest.raises(ValueError, match="twice"):
        answers(Data.of({"y": [1, 2]}).take([0, 0]), "y", None, "x")
