from __future__ import annotations

from collections import Counter
from itertools import permutations

import numpy as np
import torch

from trainlore.primitives.sampling import gumbel, successive


def test_the_top_of_log_odds_and_noise_is_drawing_one_after_another():
    """Both ways of drawing two of four rows against the chances of every ordered pair."""
    odds = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    sums = np.cumsum(odds.numpy())
    rng = torch.Generator().manual_seed(0)
    for draw in (
        lambda: (odds.log() + gumbel(4, rng)).topk(2).indices.tolist(),
        lambda: successive(sums, 4, 2, rng).tolist(),
    ):
        found = Counter(tuple(draw()) for _ in range(6000))
        for i, j in permutations(range(4), 2):
            chance = float(odds[i] / 10 * odds[j] / (10 - odds[i]))
            assert abs(found[i, j] / 6000 - chance) < 0.025


def test_gumbels_mean_is_eulers_constant():
    noise = gumbel(200_000, torch.Generator().manual_seed(1))
    assert noise.dtype == torch.float64 and abs(float(noise.mean()) - np.euler_gamma) < 0.01
    assert abs(float(noise.var()) - np.pi**2 / 6) < 0.03
