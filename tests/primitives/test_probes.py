from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from trainlore.primitives.probes import (
    best_mixture,
    cheapest,
    fit_linear,
    fit_mixing_law,
    mixing_law,
    tried_mixtures,
)

T = np.array([[-1.5, 0.3, 1.2], [0.4, -1.1, 0.7]])  # two held-out domains, three to train on; rows sum to 0
C, K = (1.2, 0.8), (1.5, 2.0)


def planted(shares, noise=0.0):
    y = np.stack([mixing_law(shares, c, k, t) for c, k, t in zip(C, K, T, strict=True)], 1)
    return y + noise * np.random.default_rng(1).normal(size=y.shape)


def test_a_rule_is_fitted_and_what_does_not_matter_is_dropped():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = 0.4 - 0.5 * x[:, 0] + 0.01 * rng.normal(size=60)
    intercept, weights = fit_linear(x, y, level=1e-4)
    line = stats.linregress(x[:, 0], y)
    assert weights.tolist() == [pytest.approx(line.slope), 0, 0] and intercept == pytest.approx(line.intercept)
    both = fit_linear(x, y + 0.2 * x[:, 2], level=1e-4)[1]
    assert both == pytest.approx([-0.5, 0, 0.2], abs=0.01) and both[1] == 0
    with pytest.raises(ValueError, match="no indicator"):
        fit_linear(x, rng.normal(size=60), level=1e-6)
    with pytest.raises(ValueError, match="3 probes are too few for 3"):
        fit_linear(x[:3], y[:3])


def test_the_search_finds_the_cheapest_amount():
    tried = []

    def cost(amount):
        tried.append(amount)
        return (np.log(amount) - np.log(40)) ** 2

    assert 35 < cheapest(cost, 5, 500, 12) < 46
    assert len(tried) == len(set(tried)) == 12 and tried[:6] == sorted(tried[:6]) and (tried[0], tried[5]) == (5, 500)
    for trials, want in ((1, [5]), (2, [5, 500]), (3, [5, 500, 50])):
        tried.clear()
        cheapest(cost, 5, 500, trials)
        assert tried == want
    assert cheapest(lambda n: -n, 3, 5, 50) == 5 and cheapest(lambda n: 0.0, 3, 5, 50) == 3
    assert cheapest(lambda n: n, 4, 4, 3) == 4


def test_the_law_term_by_term():
    r = (0.2, 0.3, 0.5)
    by_hand = 1.2 + 1.5 * math.exp(sum(t * x for t, x in zip(T[0], r, strict=True)))
    assert mixing_law(np.array([r, r]), 1.2, 1.5, T[0]) == pytest.approx([by_hand, by_hand])


def test_a_planted_law_is_found():
    shares = tried_mixtures(3, 12, np.random.default_rng(0))
    assert np.allclose(shares.sum(1), 1) and shares[0] == pytest.approx([1 / 3] * 3)
    for i in range(2):
        c, k, t = fit_mixing_law(shares, planted(shares)[:, i])
        assert (c, k) == pytest.approx((C[i], K[i]), abs=1e-3) and t == pytest.approx(T[i], abs=1e-3)


def test_the_planted_optimum_is_approached():
    """Against a grid over all shares, from noisy losses of few trainings; better the less noise there is."""
    grid = np.array([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)]) / 60
    shares, far = tried_mixtures(3, 16, np.random.default_rng(0)), []
    true = planted(grid).sum(1)
    for noise in (0.03, 0.0):
        laws = [fit_mixing_law(shares, y) for y in planted(shares, noise).T]
        best = best_mixture(laws, (1, 1))
        assert best.min() >= 0 and best.sum() == pytest.approx(1)
        far.append(float(planted(best[None]).sum() - true.min()))
    assert (
        far[0] < 0.05 * (true.max() - true.min())
        and abs(far[1]) < 1e-3 < planted(np.full((1, 3), 1 / 3)).sum() - true.min()
    )


def test_one_target_is_served_from_a_corner():
    assert best_mixture([(C[0], K[0], T[0])], (1,)) == pytest.approx([1, 0, 0], abs=1e-6)
