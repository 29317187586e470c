from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.prune.sparsegpt import SparseGPT, pruned
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def textbook(w, h, keep, pattern, block):
    """Optimal brain surgery in a fixed order, in float64: at column j all inputs before it are gone from H."""
    w, ins = w.double().clone(), w.shape[1]
    inverse = {j: torch.linalg.inv(h.double()[j:, j:]) for j in range(ins)}
    price = torch.stack([inverse[j][0, 0] for j in range(ins)])
    dropped = torch.zeros(w.shape, dtype=torch.bool)
    for j in range(ins):
        if pattern is None and j % block == 0:
            cost = (w.square() / price)[:, j : j + block].flatten()
            gone = cost.argsort()[: cost.numel() - round(keep * cost.numel())]
            dropped[:, j : j + block].view(len(w), -1)[gone // min(block, ins - j), gone % min(block, ins - j)] = True
        if pattern is not None and j % pattern[1] == 0:
            cost = (w.square() / price)[:, j : j + pattern[1]]
            dropped[:, j : j + pattern[1]].scatter_(1, cost.argsort(1)[:, : pattern[1] - pattern[0]], True)
        for i in range(len(w)):
            if dropped[i, j]:
                w[i, j:] -= w[i, j] / price[j] * inverse[j][0]
                w[i, j] = 0.0
    return w.float()


@pytest.mark.parametrize(("keep", "pattern", "block"), [(0.5, None, 4), (0.25, None, 128), (1.0, (2, 4), 6)])
def test_against_the_textbook(keep, pattern, block):
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(60, 12, generator=g) @ torch.randn(12, 12, generator=g), torch.randn(5, 12, generator=g)
    moments = x.T @ x / 60
    h = moments + 0.01 * moments.diagonal().mean() * torch.eye(12)
    got = pruned(w, moments, keep, pattern, 0.01, block)
    torch.testing.assert_close(got, textbook(w, h, keep, pattern, block), rtol=1e-4, atol=1e-4)
    assert (got != 0).float().mean() == (0.5 if pattern else keep)


def test_it_moves_the_outputs_less_than_the_same_share_by_magnitude_and_deaf_inputs_go():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(200, 16, generator=g) @ torch.randn(16, 16, generator=g), torch.randn(8, 16, generator=g)
    x[:, 3] = 0
    got = pruned(w, x.T @ x / 200, 0.5)
    small = w * (w.abs() >= w.abs().flatten().kthvalue(64).values)
    assert ((got - w) @ x.T).norm() < 0.9 * ((small - w) @ x.T).norm()
    assert (got[:, 3] == 0).all() and got.isfinite().all()


@pytest.mark.parametrize(("name", "fields"), [("text", {"keep": 0.75}), ("digits", {"pattern": "2:4"})])
def test_every_layer_keeps_its_share(name, fields):
    at = world(name)
    after = Run(0).step(SparseGPT(rows=64, tolerance=9.0, **fields), at["teacher"], at["data"])
    for m in matrices(after.net).values():
        w = weight_of(m)
        assert (w != 0).float().mean() == fields.get("keep", 0.5)
        if "pattern" in fields:
            assert ((w != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_bad_input_is_named():
    at = world("text")
    for fields, word in (({"keep": 1.5}, "keep"), ({"damp": 0.0}, "damp"), ({"block": 0}, "block")):
        with pytest.raises(ValueError, match=word):
            SparseGPT(rows=8, **fields)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="runs of 7"):
        SparseGPT(rows=8, pattern="2:7")(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="quantized already"):
        SparseGPT(rows=8)(Nearest(tolerance=9.0)(at["teacher"].copy()), at["data"])
    with pytest.raises(ValueError, match="finite"):
        pruned(torch.tensor([[torch.nan, 1.0]]), torch.eye(2), 0.5)


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    if arm == "method":
        model = run.step(SparseGPT(keep=0.5, rows=64, tolerance=9.0), at["teacher"].copy(), at["data"])
    else:
        model = run.step(Magnitude(keep=0.5, scope="layer", tolerance=9.0), at["teacher"].copy())
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="sparsegpt",
    world="text",
    rival="magnitude in each layer",
    quantity="relative distance of the logits on unseen rows at half the weights",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
