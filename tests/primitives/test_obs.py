from __future__ import annotations

import pytest
import torch

from trainlore.primitives.obs import Surgeon, damped, sweep, upper


def layer(out=5, wide=9, rows=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, wide, generator=g) @ torch.randn(wide, wide, generator=g)
    return torch.randn(out, wide, generator=g), x.T @ x / rows


def best_answer(w, h, fixed, values):
    """The weights (out, in) in float64 that minimize tr(dW H dW') where the columns `fixed` have these values."""
    w, h = w.double(), h.double()
    free = [j for j in range(w.shape[1]) if j not in fixed]
    out = w.clone()
    out[:, fixed] = values.double()
    moved = w[:, fixed] - out[:, fixed]
    if free:
        out[:, free] = w[:, free] + moved @ h[fixed][:, free] @ torch.linalg.inv(h[free][:, free])
    return out


@pytest.mark.parametrize("block", [2, 4, 128])
def test_a_sweep_gives_every_later_column_its_best_answer(block):
    w, h = layer()
    h, _ = damped(h)
    settled = []

    def settle(j, column):
        settled.append(column.clone())
        return column.round()

    got = sweep(w, upper(h), settle, block=block)
    for j in range(w.shape[1]):  # what column j was when its turn came: the best answer to all those before it
        want = best_answer(w, h, list(range(j)), got[:, :j])[:, j] if j else w[:, 0].double()
        torch.testing.assert_close(settled[j].double(), want, rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(got[:, j], settled[j].round())


def test_blocks_change_nothing_and_are_told_of():
    w, h = layer(wide=10)
    factor, told = upper(damped(h)[0]), []
    whole = sweep(w, factor, lambda j, c: c.round(), block=128)
    parts = sweep(w, factor, lambda j, c: c.round(), lambda a, b, here: told.append((a, b, here.shape)), block=4)
    torch.testing.assert_close(whole, parts)
    assert told == [(0, 4, (5, 4)), (4, 8, (5, 4)), (8, 10, (5, 2))]


def test_taking_out_groups_is_least_squares_and_its_cost_is_true():
    w, h = layer(out=4, wide=8)
    h, _ = damped(h)
    groups = torch.tensor([[0, 1], [2, 5], [3, 4], [6, 7]])
    surgeon, gone = Surgeon(w, h, groups), []
    for _ in range(3):
        costs = surgeon.costs()
        by_hand = []
        for i in range(len(groups)):
            if i in gone:
                by_hand.append(float("inf"))
                continue
            fixed = [c for k in (*gone, i) for c in groups[k].tolist()]
            move = best_answer(w, h, fixed, torch.zeros(4, len(fixed))) - w.double()
            by_hand.append(float((move @ h.double() @ move.T).trace()) - surgeon.error)
        torch.testing.assert_close(costs.double(), torch.tensor(by_hand).double(), rtol=2e-3, atol=2e-3)
        gone.append(surgeon.cheapest())
        assert gone[-1] == int(costs.argmin())
        fixed = [c for k in gone for c in groups[k].tolist()]
        want = best_answer(w, h, fixed, torch.zeros(4, len(fixed)))
        torch.testing.assert_close(surgeon.weight.double(), want, rtol=2e-3, atol=2e-3)
    assert surgeon.left.sum() == 1


def test_dead_inputs_and_too_few_rows():
    x = torch.zeros(3, 6)
    x[:, :4] = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    h, dead = damped(x.T @ x / 3)
    assert dead.tolist() == [False] * 4 + [True] * 2
    assert upper(h).isfinite().all()
    with pytest.raises(ValueError, match="damp=0"):
        damped(torch.eye(3), 0.0)
    with pytest.raises(ValueError, match="one group only"):
        Surgeon(torch.zeros(2, 4), torch.eye(4), torch.tensor([[0, 1], [1, 2]]))
