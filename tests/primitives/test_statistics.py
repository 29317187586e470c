"""Paired tests and intervals against naive loops, textbook numbers and their own level."""

import itertools
import math

import numpy as np
import pytest
import torch

from trainlore.nouns import Data, Model
from trainlore.primitives import statistics as stats
from trainlore.runs import Run


def test_sign_flip_is_the_loop_over_all_signs():
    values = np.array([0.3, -0.1, 0.25, 0.0, 0.4, -0.1])
    sums = [abs(sum(s * v for s, v in zip(signs, values))) for signs in itertools.product((1, -1), repeat=6)]
    assert stats.sign_flip(values) == pytest.approx(np.mean([s >= abs(values.sum()) - 1e-12 for s in sums]))
    assert stats.sign_flip([1.0] * 8) == 2 / 256 and stats.sign_flip([0.0, 0.0]) == 1.0


def test_sign_flip_by_chance_agrees_with_the_exact_one_and_with_mcnemar(monkeypatch):
    values = np.random.default_rng(3).normal(0.4, 1, 16)
    exact = stats.sign_flip(values)
    monkeypatch.setattr(stats, "EXACT", 0)
    assert stats.sign_flip(values, np.random.default_rng(0)) == pytest.approx(exact, abs=0.004)
    outcomes = np.r_[np.ones(30), -np.ones(14), np.zeros(500)]  # on 0/1 outcomes the two tests are one
    assert stats.sign_flip(outcomes, np.random.default_rng(0)) == pytest.approx(
        stats.mcnemar(30, 14, mid=False), abs=0.004
    )


def test_mcnemar_is_the_binomial_sum():
    def naive(b, c):
        n, low = b + c, min(b, c)
        tail = sum(math.comb(n, i) for i in range(low + 1)) / 2**n
        point = math.comb(n, low) / 2**n
        return min(1.0, 2 * tail), (1 - point / 2) if b == c else 2 * tail - point

    for b, c in [(15, 5), (0, 7), (3, 4), (6, 6), (1, 0)]:
        assert (stats.mcnemar(b, c, mid=False), stats.mcnemar(b, c)) == pytest.approx(naive(b, c))
    assert stats.mcnemar(0, 0) == 1.0
    assert stats.mcnemar(np.array([15, 6]), np.array([5, 6])).shape == (2,)


def test_holm_is_the_step_down_loop():
    p = [0.01, 0.04, 0.03, 0.005]
    assert stats.holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.5, 0.9]) == pytest.approx([1.0, 1.0]) and len(stats.holm([])) == 0


def test_five_by_two_is_alpaydins_ratio():
    d = np.random.default_rng(0).normal(0.1, 0.05, (5, 2))
    above = sum(x**2 for row in d for x in row)
    below = 2 * sum((row[0] - row.mean()) ** 2 + (row[1] - row.mean()) ** 2 for row in d)
    f, p = stats.five_by_two(d)
    assert f == pytest.approx(above / below) and 0 < p < 1
    f, p = stats.five_by_two(np.tile([1.0, 0.0], (5, 1)))
    assert (f, p) == pytest.approx((1.0, 0.5348806), abs=1e-6)  # F(10, 5) at 1
    assert stats.five_by_two(np.zeros((5, 2))) == (0.0, 1.0)
    same = np.random.default_rng(1).normal(size=(1000, 5, 2))  # two recipes alike
    assert 0.005 < np.mean([stats.five_by_two(d)[1] < 0.05 for d in same]) < 0.06


def test_cochrans_q_of_two_models_is_mcnemars_chi_square():
    right = np.array([[1] * 20 + [0] * 8, [1] * 12 + [0] * 8 + [1] * 3 + [0] * 5])
    q, p = stats.cochran_q(right)
    assert q == pytest.approx((8 - 3) ** 2 / (8 + 3)) and p == pytest.approx(math.erfc(math.sqrt(q / 2)))
    assert stats.cochran_q(np.ones((3, 4))) == (0.0, 1.0)


def test_detectable_difference_of_a_textbook_power_table():
    values = np.random.default_rng(0).normal(size=34)  # 34 pairs: half a standard deviation at 80 % power, 5 % level
    assert stats.detectable(values) / values.std(ddof=1) == pytest.approx(0.495, abs=0.002)
    assert stats.detectable([0.3]) == math.inf


def test_intervals_cover_what_they_say():
    rng = np.random.default_rng(0)
    plain = [stats.bootstrap_interval(rng.normal(size=40), rng, draws=400) for _ in range(300)]
    assert 0.9 < np.mean([low < 0 < high for low, high in plain]) < 0.98
    seeds, rows = rng.normal(0, 0.5, (200, 12, 1)), rng.normal(0, 1, (200, 1, 40))  # the rows are shared by the seeds
    tables = seeds + rows + rng.normal(0, 0.3, (200, 12, 40))
    cover = {kind: np.mean([lo < 0 < hi for lo, hi in kind_of(tables, kind, rng)]) for kind in (True, False)}
    assert cover[True] > 0.88 > cover[False]  # rows redrawn apart under each seed average away, and the interval lies


def kind_of(tables, shared, rng):
    return [stats.hierarchical_interval(table, rng, draws=200, shared=shared) for table in tables]


class Echo(torch.nn.Module):
    """Believe in every token it reads, a little."""

    main_input_name = "input_ids"

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        return torch.nn.functional.one_hot(input_ids, 5).float()


def test_outcomes_of_tokens_are_shares_of_the_answers_asked_for():
    data = Data.of({"input_ids": [[1, 2, 3], [4], [2, 2, 2, 2]], "labels": [[1, 0, -100], [4], [2, 2, 2, 0]]})
    right, tokens = stats.outcomes(Run(), Model(Echo(), "tagger"), data)
    assert right.tolist() == [0.5, 1.0, 0.75] and tokens.tolist() == [2, 1, 4]
    loss, _ = stats.outcomes(Run(), Model(Echo(), "tagger"), data, "loss")
    said, other = -math.log(math.e / (math.e + 4)), -math.log(1 / (math.e + 4))
    assert loss == pytest.approx([(said + other) / 2, said, (3 * said + other) / 4])
    ahead = Data.of({"input_ids": [[1, 1, 2]], "labels": [[1, 1, 2]]})  # a causal model answers for the next place
    right, tokens = stats.outcomes(Run(), Model(Echo(), "causal"), ahead)
    assert right.tolist() == [0.5]


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.sign_flip([]),
        lambda: stats.sign_flip([1.0, np.nan]),
        lambda: stats.bootstrap_interval([1.0], level=1.0),
        lambda: stats.holm([0.2, 1.2]),
        lambda: stats.five_by_two(np.zeros((2, 5))),
        lambda: stats.cochran_q([[0, 2], [1, 1]]),
        lambda: stats.hierarchical_interval([1.0, 2.0]),
        lambda: stats.detectable([1.0, 2.0], power=0.0),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(ValueError, match=r"differences|level|pvalues|right|power"):
        call()


def test_standardizing_and_surprise_by_hand():
    score, label = np.array([1.0, 3.0, 10.0, 20.0, 5.0]), np.array([0, 0, 7, 7, 2])
    assert stats.standardized(score, label).tolist() == [-1.0, 1.0, -1.0, 1.0, 0.0]
    assert stats.standardized(score) == pytest.approx((score - 7.8) / np.std(score))
    assert stats.standardized(np.ones(3)).tolist() == [0, 0, 0]
    logprob = np.log([0.4, 0.1, 0.8, 0.2, 0.2])
    assert np.exp(stats.surprise(logprob, label)).tolist() == pytest.approx([1.0, 4.0, 0.5, 2.0, 1.0])
