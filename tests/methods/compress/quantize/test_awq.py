from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.awq import AWQ, scale_of
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.grids import Grid
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world

DOWN, UP = "model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_scale_is_a_power_of_the_mean_input_around_one():
    mean = torch.tensor([4.0, 1.0, 0.25])
    torch.testing.assert_close(scale_of(mean, 0.5), torch.tensor([2.0, 1.0, 0.5]))
    assert torch.equal(scale_of(mean, 0.0), torch.ones(3))
    found = scale_of(torch.tensor([1.0, 0.0]), 0.5)  # an input that is never on: held at 1e-4
    torch.testing.assert_close(found, torch.tensor([1.0, 1e-4]) / 1e-2)


def test_the_ratio_is_the_one_that_moves_the_reader_least():
    at, run = world("text"), Run(3)
    before, data = at["teacher"], at["data"]
    chosen = run.numpy("calibration", "awq").permutation(len(data))[:16]
    batch, seen = data.batch(chosen, before), []
    hook = before.net.get_submodule(DOWN).register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with torch.no_grad():
        before(batch)
    hook.remove()
    x, w = seen[0][batch["attention_mask"].bool()].double(), weight_of(before.net.get_submodule(DOWN)).clone()
    scales, errors = [], []
    for i in range(20):
        s = x.abs().mean(0).float() ** (i / 20)
        s = s / (s.max() * s.min()).sqrt()
        scales.append(s)
        moved = Grid.of(w * s, "uint3", 16).round(w * s) / s - w
        errors.append(float((x @ moved.double().T).square().sum()))
    up = weight_of(before.net.get_submodule(UP)).clone()
    fields = {"bits": 3, "per": 16, "rows": 16, "size": 16, "clip": False, "targets": ("down_proj",), "tolerance": 9.0}
    after = run.step(AWQ(**fields), before.copy(), data)
    best = scales[min(range(20), key=errors.__getitem__)]
    torch.testing.assert_close(
        up / weight_of(after.net.get_submodule(UP)), best[:, None].expand_as(up), rtol=1e-4, atol=0
    )
    want = Grid.of(w * best, "uint3", 16).round(w * best)
    assert ((weight_of(after.net.get_submodule(DOWN)) - want).abs() < 1e-4).float().mean() > 0.99
    assert min(errors) < errors[0]


def test_one_ratio_without_clipping_is_round_to_nearest():
    at = world("text")
    plain = Nearest(bits=4, per=16)(at["teacher"].copy())
    after = AWQ(bits=4, per=16, ratios=1, clip=False, rows=8)(at["teacher"].copy(), at["data"])
    for a, b in zip(matrices(plain.net).values(), matrices(after.net).values(), strict=True):
        assert torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("clip", [False, True])
def test_every_layer_lies_on_its_grid_and_the_rest_still_fits(clip):
    at = world("text")
    after = Run(0).step(AWQ(bits=8, rows=16, clip=clip, ratios=5, tolerance=0.1), at["teacher"].copy(), at["data"])
    layers = matrices(after.net)
    assert after.grids.keys() == layers.keys()
    assert all(after.grids[path].holds(weight_of(layer)) for path, layer in layers.items())


def test_bad_input_is_named():
    at = world("text")
    for fields, said in (({"bits": 1}, "bits=1"), ({"ratios": 0}, "ratios=0"), ({"rows": 0}, "rows=0")):
        with pytest.raises(ValueError, match=said):
            AWQ(**fields)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="known are Llama"):
        AWQ()(world("digits")["teacher"], world("digits")["data"])
    once = AWQ(rows=8, ratios=1, targets=("up_proj",), tolerance=9.0)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="quantized already"):  # down_proj's scale would go into up_proj
        AWQ(rows=8, targets=("down_proj",))(once, at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    if arm == "method":
        model = run.step(AWQ(bits=3, rows=64, size=64, tolerance=9.0), at["teacher"].copy(), at["data"])
    else:
        model = run.step(Nearest(bits=3, per=128, tolerance=9.0), at["teacher"].copy())
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="awq",
    world="text",
    rival="round to nearest",
    quantity="relative distance of the logits on unseen rows at 3 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
