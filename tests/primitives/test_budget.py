from __future__ import annotations

import numpy as np
import pytest

from trainlore.primitives.budget import take_below, take_budget, take_within

SCORE = np.array([0.2, 0.9, 0.5, 0.9, 0.1])
LENGTHS = np.array([4, 3, 3, 2, 8])


def test_a_share_of_rows():
    assert take_budget(SCORE, 0.4).tolist() == [1, 3]
    assert take_budget(SCORE, 0.2).tolist() == [1]  # a tie goes to the earlier row
    assert take_budget(SCORE, 0.01).tolist() == [1]  # never nothing
    assert take_budget(SCORE, 1.0).tolist() == [0, 1, 2, 3, 4]


def test_the_rows_on_top_can_be_passed_over():
    held = SCORE.copy()
    assert take_below(SCORE, 0.4, 0.0).tolist() == [1, 3]
    assert take_below(SCORE, 0.4, 0.2).tolist() == [2, 3]  # of a tie the earlier row is on top
    assert take_below(SCORE, 0.4, 0.6).tolist() == [0, 4] and (held == SCORE).all()
    with pytest.raises(ValueError, match="only 2 may be taken"):
        take_below(SCORE, 0.8, 0.6)


def textbook(score, lengths, limit):
    kept, spent = [], 0
    for i in sorted(range(len(score)), key=lambda i: (-score[i], i)):
        if kept and spent + lengths[i] > limit:
            break
        kept.append(i)
        spent += lengths[i]
    return sorted(kept)


def test_a_number_or_a_share_of_tokens():
    for limit in range(2, 25):
        assert take_budget(SCORE, 0.1, limit, LENGTHS).tolist() == textbook(SCORE, LENGTHS, limit)
    for share in (0.05, 0.25, 0.4, 0.6, 1.0):
        assert take_budget(SCORE, 0.1, share, LENGTHS).tolist() == textbook(SCORE, LENGTHS, share * 20)


def test_a_share_of_tokens_survives_rounding():
    lengths = np.ones(10, np.int64)
    for tenths in range(1, 11):
        assert len(take_budget(np.arange(10.0), 0.1, tenths / 10, lengths)) == tenths


def test_forbidden_rows_are_never_taken_and_their_lack_is_said():
    score = np.where(np.arange(5) == 1, -np.inf, SCORE)
    assert take_budget(score, 0.4).tolist() == [2, 3]
    assert take_budget(score, 0.4, 17, LENGTHS).tolist() == [0, 2, 3, 4]
    with pytest.raises(ValueError, match=r"keep=1.0 asks for 5 of 5 rows and only 4"):
        take_budget(score, 1.0)
    with pytest.raises(ValueError, match=r"tokens=18 .* hold 17; lower tokens"):
        take_budget(score, 0.4, 18, LENGTHS)


@pytest.mark.parametrize(
    ("args", "names"),
    [
        ((SCORE, 0.0), "keep=0.0"),
        ((SCORE, 1.5), "keep=1.5"),
        ((SCORE, 0.1, -3, LENGTHS), "tokens=-3"),
        ((SCORE, 0.1, 10), "length of each"),
        ((np.zeros(0), 0.5), "no rows"),
        ((np.array([1.0, np.nan]), 0.5), "1 of 2 scores"),
    ],
)
def test_bad_budgets_are_named(args, names):
    with pytest.raises(ValueError, match=names):
        take_budget(*args)


def test_every_group_gets_its_part():
    score, group, lengths = np.arange(12.0), np.array([1, 0, 2] * 4), np.tile([4, 1, 2], 4)
    assert take_within(score, group, 0.5).tolist() == [6, 7, 8, 9, 10, 11]
    assert take_within(score, group, 0.1).tolist() == [9, 10, 11]  # one of each at least
    for tokens in (0.5, 14):  # half of 28, and of each group
        assert take_within(score, group, 0.1, tokens, lengths).tolist() == [6, 7, 8, 9, 10, 11]
    assert (
        take_within(score, np.zeros(12, int), 0.3, 9, lengths).tolist() == take_budget(score, 0.3, 9, lengths).tolist()
    )
