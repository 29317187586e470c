from __future__ import annotations

import itertools
import math

import pytest
import torch

from trainlore.nouns import Model
from trainlore.primitives import uncertainty as U
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def some(networks=3, rows=4, classes=3, seed=0):
    shares = torch.rand(networks, rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return shares / shares.sum(-1, keepdim=True)


def h(ps):
    return -sum(p * math.log(p) for p in ps if p > 0)


def naive(shares, rows):
    """The entropy of these rows' labels together, by listing every outcome."""
    networks, _, classes = shares.shape
    return h(
        [
            sum(math.prod(float(shares[s, r, y]) for r, y in zip(rows, ys, strict=True)) for s in range(networks))
            / networks
            for ys in itertools.product(range(classes), repeat=len(rows))
        ]
    )


def test_measures_of_one_answer():
    shares = torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert U.entropy(shares).tolist() == pytest.approx([h([0.5, 0.3, 0.2]), 0.0])
    assert U.margin(shares).tolist() == pytest.approx([0.2, 1.0])
    assert U.least_confidence(shares).tolist() == pytest.approx([0.5, 0.0])


def test_mutual_information_is_of_disagreement_not_of_doubt():
    sure, other, doubt = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
    shares = torch.tensor([[sure, doubt, sure], [other, doubt, sure]], dtype=torch.float64)
    assert U.mutual_information(shares).tolist() == pytest.approx([math.log(2), 0.0, 0.0])
    shares = some()
    for n in range(4):
        mine = naive(shares, [n]) - sum(h(shares[s, n].tolist()) for s in range(3)) / 3
        assert U.mutual_information(shares)[n].item() == pytest.approx(mine)


@pytest.mark.parametrize("picked", [[], [0], [0, 2], [3, 1, 0]])
def test_joint_entropies_are_those_of_all_outcomes(picked, monkeypatch):
    shares = some()
    monkeypatch.setattr(U, "ROOM", 40)  # several blocks
    got = U.joint_entropies(shares, U.joint(shares[:, picked], 10_000))
    assert got.tolist() == pytest.approx([naive(shares, [*picked, n]) for n in range(4)])


def test_drawn_outcomes_come_near_and_never_underflow():
    shares, rng = some(networks=4, rows=5), torch.Generator().manual_seed(1)
    drawn = U.joint(shares[:, [0, 1, 2]], 20, rng)
    assert drawn.table.shape == (4, 20)
    near = U.joint_entropies(shares, U.joint(shares[:, [0, 1, 2, 3]], 60, torch.Generator().manual_seed(1)))
    assert near[4].item() == pytest.approx(naive(shares, range(5)), rel=0.2)
    many = U.joint_entropies(shares, U.joint(shares[:, [0, 1, 2]], 26, rng))  # 27 outcomes: drawn
    exact = [naive(shares, [0, 1, 2, n]) for n in range(5)]
    assert many.tolist() == pytest.approx(exact, rel=0.2)
    flat = torch.full((2, 1500, 10), 0.1, dtype=torch.float64)  # 0.1 ** 1500 is below every float
    assert U.joint_entropies(flat[:, :2], U.joint(flat, 10, rng)).tolist() == pytest.approx([1501 * math.log(10)] * 2)


def test_a_draw_is_one_network_for_every_row_and_the_pool_is_left_as_it_was():
    at = world("digits")
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(32, 10))
    model, rows = Model(net.train()), at["data"].take([5, 5, 7] * 30)
    got = U.dropout_shares(Run(0), model, rows, 6)
    assert got.shape == (6, 90, 10) and got.dtype == torch.float64
    assert torch.allclose(got[:, 0], got[:, 1]) and torch.allclose(got[:, 0], got[:, -3])  # whatever batch they were in
    assert all(not torch.allclose(got[0], g) for g in got[1:])
    assert torch.equal(got, U.dropout_shares(Run(0), model, rows, 6))
    assert net.training and not net[2]._forward_hooks
    hidden = torch.from_numpy(rows["features"]) @ net[0].weight.T + net[0].bias
    kept = torch.rand(32, generator=Run(0).rng("dropout", "2", 0, 32)) >= 0.5
    wanted = net[3](hidden.relu() * kept / 0.5).double().softmax(-1)
    assert torch.allclose(got[0], wanted, atol=1e-6)


def test_a_network_without_dropout_is_thinned_only_when_told():
    at = world("digits")
    with pytest.raises(ValueError, match="give dropout"):
        U.dropout_shares(Run(0), at["model"], at["data"], 2)
    with pytest.raises(ValueError, match="dropout=1"):
        U.dropout_shares(Run(0), at["model"], at["data"], 2, rate=1.0)
    with pytest.raises(ValueError, match="draws=1"):
        U.dropout_shares(Run(0), at["model"], at["data"], 1, rate=0.5)
    got = U.dropout_shares(Run(0), at["model"], at["data"].take(range(4)), 3, rate=0.5)
    assert not torch.allclose(got[0], got[1])
    with pytest.raises(ValueError, match="two linear layers"):
        U.dropout_shares(Run(0), Model(torch.nn.Linear(64, 10)), at["data"], 2, rate=0.5)
