from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.order.order_effects import OrderEffects, block_of, expanded, loss_at, walk
from trainlore.primitives.gradients import flat_weights, gradient_sum, put_weights
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_the_walk_is_torchs_adam():
    rng = torch.Generator().manual_seed(0)
    start, slopes = torch.randn(7, generator=rng).double(), torch.randn(5, 7, generator=rng).double()
    weights = torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([weights], lr=0.1, betas=(0.9, 0.95))
    order = [3, 0, 4, 1, 2]
    for b in order:
        weights.grad = slopes[b] * weights.detach()
        adam.step()
    end = walk(start, order, lambda t, w, b: slopes[b] * w, 0.1)[-1]
    assert torch.allclose(end, weights.detach(), rtol=1e-12)


def quadratic(blocks=4, size=6):
    """Blocks whose loss is a parabola, and a path whose steps span all ways."""
    rng = torch.Generator().manual_seed(1)
    root, centre = (
        torch.randn(blocks, size, size, generator=rng).double(),
        torch.randn(blocks, size, generator=rng).double(),
    )
    hessian = root @ root.mT / size
    return lambda t, w, b: hessian[b] @ (w - centre[b])


def test_off_the_path_slopes_are_exact_for_parabolas_along_ways_the_path_took():
    slope, start = quadratic(blocks=9), torch.zeros(6).double()
    path = walk(start, range(9), slope, 0.05)
    table = torch.stack([torch.stack([slope(t, path[t], b) for b in range(9)]) for t in range(9)])
    off = path[4] + 0.3 * torch.randn(6, generator=torch.Generator().manual_seed(2)).double()
    near = expanded(path, table, 1)
    assert torch.allclose(near(4, off, 2), slope(4, off, 2), atol=1e-2)
    assert not torch.allclose(expanded(path, table, 0)(4, off, 2), slope(4, off, 2), atol=0.1)
    for taylor in (0, 1):  # the order of the path itself gives the path
        again = walk(start, range(9), expanded(path, table, taylor), 0.05)
        assert torch.allclose(again, path, atol=1e-12)


def test_rows_get_the_effect_of_their_block_and_the_notes_say_which_order_was_best():
    at = world("digits")
    before = at["model"].fingerprint
    report = OrderEffects(held_out=at["test"], blocks=4, orders=10, lr=0.01)(Run(0), at["model"], at["data"])
    (found,) = report.measured
    notes, block = found.notes, block_of(400, 4)
    for k in range(4):
        late = [order.index(k) >= 2 for order in notes["orders"]]
        by = {side: np.mean([e for e, s in zip(notes["estimates"], late, strict=True) if s == side]) for side in (0, 1)}
        assert found.values[block == k].tolist() == pytest.approx([by[1] - by[0]] * 100)
    assert notes["estimates"][notes["orders"].index(notes["best"])] == min(notes["estimates"])
    assert at["model"].fingerprint == before and len(set(notes["estimates"])) > 1


def test_bad_input_is_named():
    at = world("digits")
    for fields, name in (
        ({"blocks": 1}, "blocks=1"),
        ({"blocks": 401}, "blocks=401"),
        ({"orders": 1}, "orders=1"),
        ({"taylor": 2}, "taylor=2"),
        ({"held_out": at["test"].take([])}, "held_out was given no rows"),
    ):
        with pytest.raises(ValueError, match=name):
            OrderEffects(**{"held_out": at["test"], **fields})(at["model"], at["data"])
    features = at["test"]["features"].copy()
    features[3, 5] = np.nan
    bad = at["test"].with_(features=features)
    for held_out, rows in ((bad, at["data"]), (at["test"], bad)):
        with pytest.raises(ValueError, match="held-out loss is not finite: look for NaN"):
            OrderEffects(held_out=held_out, blocks=2, orders=2)(at["model"], rows)


def measure(seed: int, arm: str) -> float:
    """Rank correlation of what was said of twelve orders with the loss after training in them."""
    from scipy.stats import spearmanr

    at, run = world("digits", seed), Run(seed)
    model, rows = at["model"], at["data"].take(np.argsort(at["data"]["label"], kind="stable"))
    judge = OrderEffects(held_out=at["test"].take(range(200)), blocks=6, orders=12, lr=0.003)
    notes = judge(run, model.copy(), rows).measured[0].notes
    pieces = [rows.where(block_of(len(rows), 6) == k) for k in range(6)]

    def slope(t, weights, b):
        put_weights(model, weights)
        return gradient_sum(run, model, pieces[b]) / len(pieces[b])

    start = flat_weights(model)
    true = [loss_at(run, model, walk(start, order, slope, 0.003)[-1], judge.held_out) for order in notes["orders"]]
    said = notes["estimates"] if arm == "method" else run.numpy("rival").random(12)
    return float(spearmanr(said, true).statistic)


CLAIM = Claim(
    method="order_effects",
    world="digits",
    rival="guesses",
    quantity="rank correlation of estimated with true losses of twelve orders of rows sorted by class",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
