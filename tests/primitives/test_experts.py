from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.primitives.experts import Pair, Surer, pairs, surer, use
from trainlore.primitives.reparam import adapt
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_answer_is_the_elementwise_larger_probability():
    a, b = rand(4, 5), rand(4, 5, seed=1)
    for i in range(4):
        p, q = (torch.exp(x[i]) / torch.exp(x[i]).sum() for x in (a, b))
        expected = [max(float(p[k]), float(q[k])) for k in range(5)]
        assert surer(a, b)[i].exp().tolist() == pytest.approx(expected, rel=1e-5)


def test_the_offline_adapter_follows_by_a_running_mean():
    pair = Pair(nn.Parameter(rand(4, 3), requires_grad=False), 2, torch.Generator().manual_seed(0))
    pair.b.data, slow = rand(4, 2, seed=1), pair.slow_b.clone()
    for step in range(3):
        pair.b.data = rand(4, 2, seed=step)
        slow = 0.9 * slow + 0.1 * pair.b.data
        pair.follow(0.9)
    torch.testing.assert_close(pair.slow_b, slow)
    torch.testing.assert_close(pair(), pair.weight + pair.b @ pair.a)
    pair.offline = True
    torch.testing.assert_close(pair(), pair.weight + pair.slow_b @ pair.slow_a)


def test_a_network_answers_with_one_expert_or_the_surer_of_both():
    at = world("digits")
    model = adapt(at["model"], lambda path, weight: Pair(weight, 2, Run(0).rng(path)))
    batch = at["test"].batch(range(8))
    for pair in pairs(model.net):
        pair.b.data = rand(*pair.b.shape).float()
    with torch.no_grad():
        online = model.net(batch["features"])
        use(model.net, offline=True)
        offline = model.net(batch["features"])
        assert not torch.allclose(online, offline)
        use(model.net, offline=False)
        both = Surer(model.net)(batch["features"])
    torch.testing.assert_close(both, surer(online, offline))
    assert not any(pair.offline for pair in pairs(model.net))
