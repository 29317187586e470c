from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from trainlore.primitives import transport
from trainlore.primitives.transport import calibrated, extended, sinkhorn


def problem(n=6, m=5, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
    return rng.random((n, m)), a, b


def program(cost, a, b):
    """The same by a linear program: value, and the potentials of the rows up to a constant."""
    n, m = cost.shape
    rows, columns = np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))
    found = linprog(cost.ravel(), A_eq=np.vstack([rows, columns])[:-1], b_eq=np.concatenate([a, b])[:-1])
    return found.fun, torch.tensor(found.eqlin.marginals[:n])


@pytest.mark.parametrize("seed", range(4))
def test_at_small_epsilon_cost_and_gradients_are_those_of_the_linear_program(seed):
    cost, a, b = problem(seed=seed)
    value, f = program(cost, a, b)
    got = sinkhorn(*map(torch.tensor, (cost, a, b)), epsilon=1e-3, iterations=20_000, tolerance=1e-10)
    assert got.error < 1e-9 and got.cost == pytest.approx(value, abs=5e-3)
    assert torch.allclose(calibrated(got.f), calibrated(f), atol=2e-2)


def test_the_calibrated_gradient_is_how_the_cost_moves_with_the_mass_of_a_row():
    cost, a, b = map(torch.tensor, problem())
    how = {"epsilon": 0.05, "iterations": 2000, "tolerance": 1e-12}
    slopes, step = calibrated(sinkhorn(cost, a, b, **how).f), 1e-5
    for i in range(len(a)):
        more = torch.full_like(a, -step / (len(a) - 1))
        more[i] = step  # as much as the others lose alike
        up, down = (sinkhorn(cost, a + s * more, b, **how).cost for s in (1, -1))
        assert (up - down) / (2 * step) == pytest.approx(slopes[i].item(), abs=1e-6)


def test_features_a_block_at_a_time_are_the_cost_matrix(monkeypatch):
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, dtype=torch.float64, generator=rng) for n in (40, 30))
    for power in (1.0, 2.0):
        whole = sinkhorn(torch.cdist(x, y) ** power, epsilon=0.1, iterations=3000)
        monkeypatch.setattr(transport, "CELLS", 7 * 30)
        pieces = sinkhorn((x, y), epsilon=0.1, iterations=3000, power=power)
        monkeypatch.undo()
        assert torch.allclose(whole.f, pieces.f) and torch.allclose(whole.g, pieces.g)
        plan = torch.exp((pieces.f[:, None] + pieces.g - torch.cdist(x, y) ** power) / 0.1) / 1200
        assert torch.allclose(plan.sum(0), torch.full((30,), 1 / 30).double(), atol=1e-12)
        assert float((plan.sum(1) - 1 / 40).abs().sum()) <= 1e-4


def test_the_potential_of_a_further_row_is_that_of_the_row_itself_and_its_limit_as_it_gains_mass():
    cost, a, b = map(torch.tensor, problem())
    how = {"epsilon": 0.05, "iterations": 2000, "tolerance": 1e-12}
    got = sinkhorn(cost, a, b, **how)
    assert torch.allclose(extended(cost, got.g, b, epsilon=0.05), got.f, atol=1e-10)
    without = sinkhorn(cost[1:], a[1:], b, **how)
    little = sinkhorn(cost, torch.cat([torch.tensor([1e-7]).double(), a[1:]]), b, **how)
    assert extended(cost, without.g, b, epsilon=0.05)[0].item() == pytest.approx(little.f[0].item(), abs=1e-5)


def test_large_costs_in_float32_stay_finite_and_rows_without_mass_are_allowed():
    cost = torch.rand(20, 10) * 1e4
    got = sinkhorn(cost, a=torch.cat([torch.zeros(1), torch.ones(19)]), epsilon=1.0)
    assert got.f.isfinite().all() and got.g.isfinite().all() and np.isfinite(got.cost)
    assert calibrated(torch.ones(1)).tolist() == [0.0]


def test_bad_input_is_named():
    for fields, name in (
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"a": torch.ones(3)}, "a must be 4"),
        ({"b": -torch.ones(3)}, "b must"),
    ):
        with pytest.raises(ValueError, match=name):
            sinkhorn(torch.rand(4, 3), **fields)
    with pytest.raises(ValueError, match="0 source"):
        sinkhorn(torch.rand(0, 3))
    with pytest.raises(ValueError, match="not finite"):
        sinkhorn(torch.full((2, 2), torch.nan))
    with pytest.raises(ValueError, match="width"):
        sinkhorn((torch.rand(2, 3), torch.rand(2, 4)))
