import numpy as np
import torch

from trainlore.primitives.skipgrams import sgns, skipgrams


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_against_a_loop():
    center, context, negatives = rand(2, 4, seed=2), rand(2, 4, seed=3), rand(2, 3, 4, seed=4)
    for i, value in enumerate(sgns(center, context, negatives)):
        sigmoid = lambda x: 1 / (1 + torch.exp(-x))
        expected = -torch.log(sigmoid(center[i] @ context[i]))
        expected = expected - sum(torch.log(sigmoid(-(center[i] @ n))) for n in negatives[i])
        torch.testing.assert_close(value, expected)


def test_pairs_against_a_loop():
    document, centers = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([3, 0, 4, 6])
    expected = [
        (c, j) for c in centers for j in range(c - 2, c + 3) if j != c and 0 <= j < 7 and document[j] == document[c]
    ]
    got = list(zip(*(x.tolist() for x in skipgrams(document, centers, 2)), strict=True))
    assert got == expected
