from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.gptq import GPTQ, rounded
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.grids import Grid
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def textbook(w, h, grid):
    """Optimal brain quantization in a fixed order, with the inverse of H downdated column by column, in float64."""
    w, inverse = w.double().clone(), torch.linalg.inv(h.double())
    scale, zero = (t.double().expand(*w.shape) for t in grid.columns(w.shape[1]))
    for j in range(w.shape[1]):
        q = grid.values(w[:, j].float(), scale[:, j].float(), zero[:, j].float()).double()
        w[:, j:] -= ((w[:, j] - q) / inverse[j, j])[:, None] * inverse[j, j:]
        w[:, j] = q
        inverse = inverse - inverse[:, j : j + 1] @ inverse[j : j + 1] / inverse[j, j]
    return w.float()


@pytest.mark.parametrize("per", ["channel", 4])
@pytest.mark.parametrize("form", ["int3", "uint3", "e2m1"])
def test_against_the_textbook(per, form):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 12, generator=g) @ torch.randn(12, 12, generator=g), torch.randn(5, 12, generator=g)
    moments = x.T @ x / 50
    grid = Grid.of(w, form, per)
    h = moments + 0.01 * moments.diagonal().mean() * torch.eye(12)
    got = rounded(w, moments, grid)
    torch.testing.assert_close(got, textbook(w, h, grid))
    assert grid.holds(got)
    order = moments.diagonal().argsort(descending=True)
    wide = Grid(form, 1, *(t.expand(5, 12)[:, order].reshape(-1, 1) for t in grid.columns(12)))
    want = textbook(w[:, order], h[order][:, order], wide)[:, order.argsort()]
    torch.testing.assert_close(rounded(w, moments, grid, sort=True), want)


def test_inputs_that_are_never_on_lose_their_weights_and_move_nothing():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(50, 6, generator=g), torch.randn(4, 6, generator=g)
    x[:, 2] = 0
    grid = Grid.of(w, "uint4", "channel")
    got = rounded(w, x.T @ x / 50, grid)
    assert (got[:, 2] == 0).all() and got.isfinite().all()


@pytest.mark.parametrize(("name", "unseen"), [("text", "held_out"), ("digits", "test")])
def test_every_layer_lies_on_its_grid_and_the_outputs_move_less(name, unseen):
    at, run = world(name), Run(0)
    before = run.infer(at["teacher"], at[unseen], lambda b, out: out[:, :8])
    shift = []
    for method, nouns in ((Nearest(bits=3, tolerance=9.0), ()), (GPTQ(bits=3, rows=64, tolerance=9.0), (at["data"],))):
        after = run.step(method, at["teacher"].copy(), *nouns)
        layers = matrices(after.net)
        assert after.grids.keys() == layers.keys()
        assert all(after.grids[path].holds(weight_of(layer)) for path, layer in layers.items())
        shift.append(float((run.infer(after, at[unseen], lambda b, out: out[:, :8]) - before).norm()))
    assert shift[1] < shift[0]


def test_bad_input_is_named():
    at = world("text")
    with pytest.raises(ValueError, match="bits=1"):
        GPTQ(bits=1)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="damp=0"):
        GPTQ(damp=0.0, rows=8)(at["teacher"].copy(), at["data"])
    once = GPTQ(rows=8, tolerance=9.0)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="quantized already"):
        GPTQ(rows=8, bits=3)(once, at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    if arm == "method":
        model = run.step(GPTQ(bits=3, rows=64, tolerance=9.0), at["teacher"].copy(), at["data"])
    else:
        model = run.step(Nearest(bits=3, tolerance=9.0), at["teacher"].copy())
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="gptq",
    world="text",
    rival="round to nearest",
    quantity="relative distance of the logits on unseen rows at 3 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
