"""The statistics of a race against textbook values, and against worlds where the truth is known."""

import itertools

import numpy as np
import pytest
from scipy import stats

from trainlore.errors import Bad
from trainlore.primitives import statistics as st
from trainlore.races.verdict import BETTER, CANNOT, WORSE, Outcomes, effect, headline, interval, judge, least_rows


def outcomes(values, better="higher", weights=None):
    values = np.asarray(values, float)
    return Outcomes(values, tuple(range(len(values))), np.arange(values.shape[1]), better, weights)


def textbook(table):
    """Variance of the mean by the mean squares of a crossed design, with plain loops."""
    seeds, rows = len(table), len(table[0])
    grand = sum(map(sum, table)) / (seeds * rows)
    by_seed = [sum(r) / rows for r in table]
    by_row = [sum(table[s][n] for s in range(seeds)) / seeds for n in range(rows)]
    ms_seed = rows * sum((x - grand) ** 2 for x in by_seed) / (seeds - 1)
    ms_row = seeds * sum((x - grand) ** 2 for x in by_row) / (rows - 1)
    left = sum((table[s][n] - by_seed[s] - by_row[n] + grand) ** 2 for s in range(seeds) for n in range(rows))
    ms_left = left / ((seeds - 1) * (rows - 1))
    return grand, ((ms_seed + ms_row - ms_left) / (seeds * rows)) ** 0.5


def test_crossed_is_the_textbooks_where_rows_and_seeds_both_vary():
    rng = np.random.default_rng(1)
    table = 0.1 * rng.normal(size=(12, 1)) + 2 * rng.normal(size=(1, 40)) + 0.5 * rng.normal(size=(12, 40))
    mean, stderr, df = st.crossed(table)
    assert (mean, stderr) == pytest.approx(textbook(table.tolist()), rel=1e-9)
    assert 30 < df < 60  # the rows decide here


def test_with_rows_alike_it_is_the_t_test_over_seeds_and_with_seeds_alike_over_rows():
    rng = np.random.default_rng(2)
    by_seed, by_row = rng.normal(size=6) + 0.5, rng.normal(size=30) + 0.3
    for table, values in ((np.repeat(by_seed[:, None], 9, 1), by_seed), (np.repeat(by_row[None], 4, 0), by_row)):
        mean, stderr, df = st.crossed(table)
        assert st.two_sided(mean, stderr, df) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-9)


def test_weights_make_a_ratio_of_sums():
    table, weights = np.random.default_rng(3).normal(size=(3, 5)), np.array([1.0, 2, 3, 4, 10])
    assert st.crossed(table, weights)[0] == pytest.approx((table * weights).sum() / (3 * weights.sum()))
    assert st.crossed(table, np.full(5, 7.0)) == pytest.approx(st.crossed(table))


def test_the_smallest_difference_is_the_one_found_with_the_power_asked_for():
    rng = np.random.default_rng(4)
    delta = st.smallest(0.5, 9, power=0.8)
    t = (rng.normal(size=20_000) * 0.5 + delta) / (0.5 * np.sqrt(rng.chisquare(9, 20_000) / 9))
    assert np.mean(abs(t) > stats.t.ppf(0.975, 9)) == pytest.approx(0.8, abs=0.02)


def test_holm_and_mcnemar_agree_with_statsmodels():
    multiple = pytest.importorskip("statsmodels.stats.multitest")
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    p = np.random.default_rng(5).random(9) ** 3
    assert np.allclose(st.holm(p), multiple.multipletests(p, method="holm")[1], atol=1e-9)
    for b, c in ((3, 9), (0, 6), (12, 12)):
        theirs = tables.mcnemar([[50, b], [c, 60]], exact=True).pvalue
        assert st.mcnemar(b, c, mid=False) == pytest.approx(min(1.0, theirs), abs=1e-9)


@pytest.mark.parametrize(
    ("seeds", "rows", "by_seed", "by_row", "left"),
    [(3, 60, 0.3, 0.5, 1), (5, 200, 0.0, 1.0, 1), (5, 60, 1.0, 0.1, 0.3), (10, 100, 0.1, 1, 0.2)],
)
def test_no_difference_is_rarely_found_and_intervals_hold_the_truth(seeds, rows, by_seed, by_row, left):
    rng, times, truth = np.random.default_rng(6), 400, 0.7
    found = covered = drawn = 0
    for at in range(times):
        noise = by_seed * rng.normal(size=(seeds, 1)) + by_row * rng.normal(size=(1, rows))
        table = truth + noise + left * rng.normal(size=(seeds, rows))
        mean, stderr, df = st.crossed(table)
        found += st.two_sided(mean - truth, stderr, df) < 0.05
        if at < 40:
            low, high = interval(table, None, mean, stderr, df, seed=at)
            covered, drawn = covered + (low <= truth <= high), drawn + 1
    assert found / times <= 0.05 + 3 * (0.05 * 0.95 / times) ** 0.5
    assert covered / drawn >= 0.82  # 95 % less three standard errors of 40 draws


def test_planted_differences_are_found_with_about_the_promised_power():
    rng, found, times = np.random.default_rng(7), 0, 300
    stderr = (0.2**2 / 8 + 1.0 / 400) ** 0.5
    delta = st.smallest(stderr, 7.0)
    for _ in range(times):
        table = delta + 0.2 * rng.normal(size=(8, 1)) + rng.normal(size=(1, 400)) * 1.0
        found += st.two_sided(*st.crossed(table)) < 0.05
    assert 0.7 < found / times <= 0.97


def test_better_worse_and_cannot_separate_with_both_directions_of_the_metric():
    rng = np.random.default_rng(8)
    base = rng.normal(size=(6, 300))
    arms = {"base": base, "up": base + 0.5, "same": base + 0.3 * rng.normal(size=base.shape), "down": base - 0.5}
    for better, sign in (("higher", 1), ("lower", -1)):
        said = judge({k: outcomes(sign * v, better) for k, v in arms.items()}, "base")
        assert [e.verdict for e in said] == [BETTER, CANNOT, WORSE]
        assert said[0].difference == pytest.approx(0.5) and said[0].interval[0] <= 0.5 <= said[0].interval[1]
        assert "up beats base" in headline(said, "base", "score") and "down is worse" in headline(said, "base", "score")
    same = judge({k: outcomes(arms[k]) for k in ("base", "same")}, "base")
    assert headline(same, "base", "score").startswith("Nothing here beats base") and same[0].detectable > 0


def test_right_and_wrong_answers_are_tested_by_mcnemar_too():
    rng = np.random.default_rng(9)
    first, second = (rng.random((4, 200)) < p for p in (0.8, 0.6))
    found = effect("a", outcomes(first), "b", outcomes(second))
    b, c = (first[0] & ~second[0]).sum(), (~first[0] & second[0]).sum()
    assert found.mcnemar == pytest.approx(float(st.mcnemar(int(b), int(c))))
    assert found.sign_flip == pytest.approx(2 / 16) and len(found.by_seed) == 4  # four seeds can say no more


def test_identical_arms_differ_by_nothing_and_seeds_are_paired_by_name():
    values = np.random.default_rng(10).normal(size=(3, 50))
    same = effect("a", outcomes(values), "b", outcomes(values))
    assert same.p == 1 and same.difference == 0 and same.interval == (0.0, 0.0)
    shifted = Outcomes(values[1:], (1, 2), np.arange(50), "higher")
    assert effect("a", outcomes(values), "b", shifted).seeds == 2
    with pytest.raises(Bad, match="no seed in common"):
        effect("a", outcomes(values), "b", Outcomes(values[:1], (9,), np.arange(50), "higher"))
    with pytest.raises(Bad, match="same rows"):
        effect("a", outcomes(values), "b", Outcomes(values, (0, 1, 2), np.arange(1, 51), "higher"))


def test_the_fewest_rows_that_can_separate():
    for arms, level in itertools.product((1, 3, 8), (0.05, 0.01)):
        n = least_rows(arms, level)
        assert 2 * 0.5**n <= level / arms < 2 * 0.5 ** (n - 1)
