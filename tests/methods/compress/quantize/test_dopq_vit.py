from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from trainlore import meter
from trainlore.claims import Claim
from trainlore.methods.compress.quantize.dopq_vit import WARPS, DopQViT, Tan, common, reparametrize, tan_rounded
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.activations import Rounder, found, read_rounded
from trainlore.primitives.anatomy import bodies, feeds, rescale
from trainlore.primitives.attending import attend_through, attentions
from trainlore.primitives.grids import snap
from trainlore.primitives.masks import weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@cache
def trained():
    """A ViT of two layers trained for a moment on digits, and digits as images: (model, train, test)."""
    at = world("digits")
    train, test = (
        Data.of({"pixel_values": at[k]["features"].reshape(-1, 1, 8, 8), "label": at[k]["label"]})
        for k in ("data", "test")
    )
    model = preset("vit-digits", seed=3, num_hidden_layers=2, hidden_size=32, intermediate_size=64)
    with meter.unpaid():
        return Run(3).fit(model, train, steps=150, batch_size=32, lr=3e-3, precision="fp32"), train, test


def naive(run, model, bits):
    """Everything that the method rounds, to the nearest by smallest and largest value."""
    parts = [p for b in bodies(model) for p in (*b.heads_in, b.heads_out, *b.neurons_in, b.neurons_out)]
    model = run.step(Nearest(bits=bits, targets=tuple(parts), tolerance=9.0), model)
    for path in parts:
        read_rounded(model.net.get_submodule(path), Rounder(f"uint{bits}", "tensor"))
    for path in attentions(model):
        attend_through(model, path, Rounder(f"uint{bits}", "tensor"))
    return model


def test_tangent_steps_against_a_loop():
    x, peak, warp, bits = rand(50).softmax(0) * 20, 0.9, 1.3, 3
    for value, got in zip(x.tolist(), tan_rounded(x, peak, warp, bits).tolist(), strict=True):
        code = round(math.tan(warp * min(1.0, value / peak)) / math.tan(warp) * 7)
        assert got == pytest.approx(math.atan(code * math.tan(warp) / 7) / warp * peak, abs=1e-5)
    levels = tan_rounded(torch.linspace(0, 1, 5001), 1.0, warp, bits).unique()
    assert len(levels) == 8 and levels[0] == 0 and levels[-1] == pytest.approx(1.0)
    assert (levels.diff().diff() < 0).all()  # denser and denser towards 1
    even = tan_rounded(x / 20, 1.0, 1e-3, 4)
    torch.testing.assert_close(even, (x / 20 * 15).round() / 15, atol=1e-5, rtol=0)


def test_the_warp_is_the_best_of_all():
    x = torch.cat([rand(200).softmax(0), 1 - 0.1 * rand(200, seed=1).abs().clamp(max=5)])
    one = Tan.of(x, 4)
    gaps = [float((tan_rounded(x, one.peak, warp, 4) - x).square().mean()) for warp in WARPS]
    assert gaps[WARPS.index(one.warp)] == min(gaps)
    shares = x.clone().requires_grad_()
    one(shares).sum().backward()
    assert (shares.grad == 1).all()


def test_channels_share_the_median_scale():
    low, high = torch.tensor([-1.0, 0.5, -30.0, 2.0]), torch.tensor([2.0, 2.0, 60.0, 2.0 + 1e-6])
    scale, zero, middle, shared = common(low, high, 4)
    torch.testing.assert_close(scale, torch.tensor([0.2, 0.1, 6.0, 0.2]))  # the last hardly moves: the median
    assert float(middle) == pytest.approx(0.2) and zero.tolist() == [5, -5, 5, -10] and shared == round(-5 / 4)


def grids(model, batch, feed, times=1.0):
    """What the first reader of a norm reads after folding, and on the grid that was found."""
    heard = []
    layer = model.net.get_submodule(feed.readers[0])
    hook = layer.register_forward_pre_hook(lambda m, args: heard.append(args[0].flatten(0, 1)))
    model(batch)
    grid = reparametrize(model.net, feed, heard[0].detach(), 4)
    if times != 1.0:
        rescale(model.net, feed, torch.full_like(heard[0][0], times))
        grid.scale /= times
    model(batch)
    hook.remove()
    return heard[0].detach(), heard[1].detach(), grid


def test_folding_changes_nothing_and_gives_every_channel_the_whole_grid():
    model, _, test = trained()
    model = model.copy()
    batch = test.batch(range(20), model)
    before = model(batch)
    for feed in feeds(model):
        x, now, grid = grids(model, batch, feed)
        scale, zero = found(x, "uint4", "channel")
        wide = (x.amax(0) - x.amin(0)) / 15
        want = ((x / wide).round() + (-x.amin(0) / wide).round()).clamp(0, 15)  # by each channel's own grid
        got = ((now / grid.scale).round() + grid.zero).clamp(0, 15)
        assert (got - want).abs().max() <= 1 and (got != want).float().mean() < 0.01
        assert scale.shape == zero.shape == x[0].shape and (got.amax(0) - got.amin(0) >= 14).all()
    torch.testing.assert_close(model(batch), before, atol=1e-3, rtol=1e-3)


def test_the_layers_scale_cancels():
    model, _, test = trained()
    feed, batch, found_ = feeds(model)[0], test.batch(range(20), model), []
    for times in (1.0, 3.7):
        one = model.copy()
        _, now, grid = grids(one, batch, feed, times)
        matrix = weight_of(one.net.get_submodule(feed.readers[0]))
        step = matrix.abs().amax(1, keepdim=True) / 7
        found_.append(snap(now, "uint4", grid.scale, grid.zero) @ ((matrix / step).round() * step).T)
    gap = (found_[0] - found_[1]).abs()
    assert (gap > 1e-3).float().mean() < 0.01  # but for values half way between two steps


def test_the_model_holds_its_grids_and_moves_less():
    model, train, test = trained()
    run = Run(0)
    before = run.infer(model, test, lambda b, out: out)
    after = run.step(DopQViT(tolerance=9.0), model.copy(), train)
    assert len(after.grids) == 12
    assert all(grid.holds(weight_of(after.net.get_submodule(path))) for path, grid in after.grids.items())
    shift = [(run.infer(m, test, lambda b, out: out) - before).norm() for m in (after, naive(run, model.copy(), 4))]
    assert shift[0] < shift[1]
    torch.testing.assert_close(after.copy()(test.batch(range(4), after)), after(test.batch(range(4), after)))


def test_norms_without_a_bias_fold_scales_alone():
    at = world("text")
    after = DopQViT(bits=6, rows=8, tolerance=9.0)(at["teacher"].copy(), at["data"])
    layer = after.net.model.layers[0].self_attn.q_proj
    assert layer.bias is None and layer.reads.form == "int6" and layer.reads.zero == 0


def test_bad_input_is_named():
    model, train, _ = trained()
    for wrong in ({"bits": 9}, {"bits_weight": 1}, {"rows": 0}):
        with pytest.raises(ValueError, match="bits=|rows=0"):
            DopQViT(**wrong)(model.copy(), train)
    once = DopQViT(rows=8, tolerance=9.0)(model.copy(), train)
    with pytest.raises(ValueError, match="quantized already"):
        DopQViT(rows=8)(once, train)
    with pytest.raises(ValueError, match="known"):
        DopQViT()(world("digits")["teacher"], world("digits")["data"])


def measure(seed: int, arm: str) -> float:
    model, train, test = trained()
    run = Run(seed)
    before = run.infer(model, test, lambda b, out: out)
    if arm == "method":
        after = run.step(DopQViT(tolerance=9.0), model.copy(), train)
    else:
        after = naive(run, model.copy(), 4)
    return float((run.infer(after, test, lambda b, out: out) - before).norm() / before.norm())


CLAIM = Claim(
    method="dopq_vit",
    world="digits",
    rival="weights, inputs and probabilities to the nearest",
    quantity="relative distance of the logits on unseen rows, everything in 4 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
