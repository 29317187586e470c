from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import torch

from trainlore.primitives.sampling import Sums, gumbel, successive


def test_the_top_of_log_odds_and_noise_is_drawing_one_after_another():
    """Both ways of drawing two of four rows against the chances of every ordered pair."""
    odds = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    sums = Sums(odds.numpy())
    rng = torch.Generator().manual_seed(0)
    for draw in (
        lambda: (odds.log() + gumbel(4, rng)).topk(2).indices.tolist(),
        lambda: successive(sums, 2, rng).tolist(),
    ):
        found = Counter(tuple(draw()) for _ in range(6000))
        for i, j in permutations(range(4), 2):
            chance = float(odds[i] / 10 * odds[j] / (10 - odds[i]))
            assert abs(found[i, j] / 6000 - chance) < 0.025


def test_gumbels_mean_is_eulers_constant():
    noise = gumbel(200_000, torch.Generator().manual_seed(1))
    assert noise.dtype == torch.float64 and abs(float(noise.mean()) - np.euler_gamma) < 0.01
    assert abs(float(noise.var()) - np.pi**2 / 6) < 0.03


def test_a_look_up_in_runs_is_one_search_over_all_sums():
    rng = np.random.default_rng(0)
    for rows in (1, 31, 32, 33, 4000):
        odds = rng.random(rows) * (rng.random(rows) < 0.7)
        odds[rows // 2] = 1.0
        sums = Sums(odds)
        whole = np.cumsum(odds)
        at = np.concatenate([rng.random(500) * whole[-1], whole[:-1], [0.0]])
        at = at[at < whole[-1]]
        found = sums.rows_at(at)
        assert (found == np.searchsorted(whole, at, side="right")).all() and (odds[found] > 0).all()
        assert sums.possible == np.count_nonzero(odds) and np.allclose(sums.odds(), odds)


def test_what_a_step_draws_is_what_whole_searches_would_draw():
    """The first numbers are looked up first: the rows are those that all at once would give."""
    rng = np.random.default_rng(1)
    for skew in (1, 12):
        odds = rng.random(300) ** skew
        whole, named = np.cumsum(odds), torch.Generator()
        for n in (1, 7, 64, 250):
            fresh = torch.rand(2 * n + 16, generator=named.manual_seed(n), dtype=torch.float64).numpy()
            all_ = np.searchsorted(whole, fresh * whole[-1], side="right")
            once = all_[np.sort(np.unique(all_, return_index=True)[1])]
            drawn = successive(Sums(odds), n, named.manual_seed(n))
            assert len(set(drawn.tolist())) == n
            assert (drawn[: len(once)] == once[:n]).all()
