from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from trainlore.nouns import Data
from trainlore.primitives.raters import bradley_terry, linear_rater, train_rater
from trainlore.runs import Run
from trainlore.worlds.tiny import llama


def test_the_loss_is_bradley_terrys():
    s, r, p = (torch.tensor(x, dtype=torch.float64) for x in ([2.0, 0.0, -1.0], [1.0, 0.0, 3.0], [1.0, 0.5, 0.2]))
    want = [
        -(p_ * np.log(1 / (1 + np.exp(b - a))) + (1 - p_) * np.log(1 / (1 + np.exp(a - b))))
        for a, b, p_ in zip(s, r, p, strict=True)
    ]
    assert torch.allclose(bradley_terry(s, r, p), torch.stack(list(map(torch.as_tensor, want))))
    assert bradley_terry(s, r, p)[1].item() == pytest.approx(np.log(2))


def test_the_linear_rater_is_where_the_gradient_vanishes():
    rng = np.random.default_rng(0)
    x, share = rng.normal(size=(20, 5)), rng.random(20)
    w = linear_rater(csr_matrix(x), share, 0.3)
    slope = 0.3 * w
    for d, p in zip(x, share, strict=True):
        slope = slope - (p - 1 / (1 + np.exp(-d @ w))) * d
    assert np.abs(slope).max() < 1e-3 and np.abs(w).max() > 0.1


def test_a_network_must_give_one_number_a_text():
    pairs = Data.of({"chosen": ["a b"], "rejected": ["c"]})
    with pytest.raises(ValueError, match="not one number each"):
        train_rater(Run(0), llama(), pairs, np.ones(1), steps=1, batch_size=2, lr=1e-3)
