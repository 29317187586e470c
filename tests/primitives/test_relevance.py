from __future__ import annotations

import torch
from torch import nn

from trainlore.primitives.relevance import Relevance, passed
from trainlore.primitives.shrinking import chain


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.AvgPool2d(1)),
        nn.Flatten(),
        nn.Linear(6, 10),
        nn.ReLU(),
        nn.Linear(10, 10),
    )


def test_the_rule_against_a_loop():
    a, r, layer = rand(2, 5), rand(2, 3, seed=1), nn.Linear(5, 3).double()
    layer.weight.data = rand(3, 5, seed=2) - 0.3
    got, w = passed(layer, a, r), layer.weight.detach().clamp(min=0)
    for n in range(2):
        for i in range(5):
            want = sum(a[n, i] * w[j, i] / (a[n] @ w[j]) * r[n, j] for j in range(3))
            torch.testing.assert_close(got[n, i], want)
    conv, a = nn.Conv2d(2, 3, 2, stride=2).double(), rand(1, 2, 4, 4)
    conv.weight.data = rand(3, 2, 2, 2, seed=3) - 0.3
    r, w, want = rand(1, 3, 2, 2, seed=1), conv.weight.detach().clamp(min=0), torch.zeros(1, 2, 4, 4).double()
    for j, y, x in ((j, y, x) for j in range(3) for y in range(2) for x in range(2)):
        part = a[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] * w[j]
        want[0, :, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2] += part / part.sum() * r[0, j, y, x]
    torch.testing.assert_close(passed(conv, a, r), want)


def test_relevance_is_conserved_through_every_layer():
    net, x, y = images().double(), rand(5, 64), torch.tensor([0, 1, 2, 3, 4])
    modules = list(chain(net).values())
    logit = net(x)[range(5), y]
    for r, wide in zip(Relevance(modules)(x, y).split([4, 6, 10], 1), (4, 6, 10), strict=True):
        assert r.shape == (5, wide)
        torch.testing.assert_close(r.sum(1), logit, rtol=1e-4, atol=1e-6)
