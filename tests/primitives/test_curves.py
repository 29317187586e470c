"""Power laws come back from their own points; the fit beats a naive scan; smoothing is the moving mean."""

import numpy as np
import pytest

from trainlore.primitives import curves

SIZES = 2.0 ** np.arange(4, 12)
LAW = np.array([2.0, 0.4, 0.05])


def test_a_law_comes_back_from_its_points_and_its_size_is_its_inverse():
    errors = curves.power_at(LAW, SIZES)
    assert errors == pytest.approx([2.0 * n**-0.4 + 0.05 for n in SIZES])
    assert curves.fit_power(SIZES, errors) == pytest.approx(LAW, rel=1e-4)
    assert curves.power_size(LAW, 0.06) == pytest.approx((2.0 / 0.01) ** 2.5)
    assert curves.power_size(LAW, 0.05) == np.inf


def test_the_fit_is_no_worse_than_a_dense_scan_under_weights_and_bounds():
    rng = np.random.default_rng(0)
    errors, weights = curves.power_at(LAW, SIZES) + rng.normal(0, 0.02, 8), rng.uniform(0.2, 1, 8)
    for floor in [(0.0, np.inf), (0.1, 0.2), (-np.inf, np.inf)]:
        law = curves.fit_power(SIZES, errors, weights, floor)
        best = min(
            (weights * (a * SIZES**-b + c - errors) ** 2).sum()
            for b in np.linspace(0.1, 1.2, 45)
            for a in np.geomspace(0.5, 20, 60)
            for c in np.linspace(max(floor[0], -0.3), min(floor[1], 0.3), 25)
        )
        assert (weights * (curves.power_at(law, SIZES) - errors) ** 2).sum() <= best
        assert floor[0] - 1e-12 <= law[2] <= floor[1] + 1e-12 and law[0] >= 0


def test_many_curves_at_once_are_the_curves_one_by_one():
    errors = curves.power_at(np.array([LAW, [3.0, 0.7, 0.0], [0.0, 1.0, 0.3]]), SIZES)
    together = curves.power_at(curves.fit_power(SIZES, errors), SIZES)
    alone = np.stack([curves.power_at(curves.fit_power(SIZES, row), SIZES) for row in errors])
    assert together == pytest.approx(alone, abs=1e-3)


def test_draws_spread_like_refits_of_fresh_noise():
    rng, truth = np.random.default_rng(1), curves.power_at(LAW, SIZES)
    draws = curves.draw_power(SIZES, truth, rng, spread=np.full(8, 0.01))
    fresh = curves.fit_power(SIZES, truth + rng.normal(0, 0.01, (400, 8)))
    wide, wanted = (np.ptp(np.quantile(curves.power_at(laws, [1e4])[:, 0], [0.1, 0.9])) for laws in (draws, fresh))
    assert wide == pytest.approx(wanted, rel=0.25)


def test_least_squares_takes_the_best_start_and_ignores_an_outlier():
    x = np.linspace(1, 20, 60)
    seen = 3 * x**-0.5 + 1
    seen[10] += 2

    def fit(**more):
        return curves.least_squares(
            lambda p: p[0] * x ** -p[1] + p[2], [[1, 3, 0], [1, 0.6, 0.5]], seen, [0, 0, 0], [9, 4, 9], **more
        )

    assert fit(huber=1e-3, log=True) == pytest.approx([3, 0.5, 1], abs=0.02)
    assert np.abs(fit() - [3, 0.5, 1]).max() > 0.1


def test_smooth_is_the_moving_mean_and_keeps_the_length():
    values = np.random.default_rng(0).normal(size=30)
    smoothed = curves.smooth(values, 5)
    assert len(smoothed) == 30 and smoothed[2:-2] == pytest.approx([values[i - 2 : i + 3].mean() for i in range(2, 28)])
    assert (curves.smooth(values, 1) == values).all() and curves.smooth([4.0], 9) == [4.0]


@pytest.mark.parametrize(
    "sizes, errors", [([1, 2], [1, 1]), ([0, 1, 2], [1, 1, 1]), ([1, 2, 3], [1, np.nan, 1]), ([1, 2, 3], [1, 2])]
)
def test_bad_input_is_named(sizes, errors):
    with pytest.raises(ValueError, match=r"sizes|finite"):
        curves.fit_power(sizes, errors)


def test_curves_against_an_expert():
    expert = np.minimum(np.arange(40) / 10, 1.0)
    slow = np.minimum(np.arange(60) / 20, 1.0)
    assert curves.relative_performance(slow, expert) == pytest.approx(slow[:40].sum() / expert.sum())
    assert curves.relative_performance(expert, expert) == 1 and curves.sample_efficiency(expert, expert) == 1
    (top, steps), (best, fast) = curves.saturation(slow), curves.saturation(expert)
    assert top == pytest.approx(1) and best == pytest.approx(1) and 20 <= steps <= 30 and 10 <= fast <= 16
    assert curves.sample_efficiency(slow, expert) == pytest.approx(fast / steps)
    assert curves.sample_efficiency(slow[::-1], expert) != curves.sample_efficiency(slow, expert)
    assert (
        curves.sample_efficiency(0.1 * slow, expert) == 0
        and curves.sample_efficiency(-np.abs(np.arange(40) - 10.0), expert) == 0
    )
