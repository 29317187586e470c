from __future__ import annotations

from functools import cache

import pytest
import torch

from trainlore import meter
from trainlore.claims import Claim
from trainlore.methods.compress.quantize.mptq_vit import MPTQViT
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.activations import Rounder, read_rounded
from trainlore.primitives.anatomy import bodies, feeds
from trainlore.primitives.attending import attend_through, attentions
from trainlore.primitives.masks import weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


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
    model = run.step(Nearest(bits=bits, symmetric=True, targets=tuple(parts), tolerance=9.0), model)
    for path in parts:
        read_rounded(model.net.get_submodule(path), Rounder(f"int{bits}", "tensor"))
    for path in attentions(model):
        attend_through(model, path, Rounder(f"uint{bits}", "tensor"))
    return model


def moved(run, before, model, test):
    after = run.infer(model, test, lambda b, out: out)
    return float((after - before).norm() / before.norm())


def test_moving_what_norms_give_changes_nothing_and_makes_it_even():
    model, train, test = trained()
    model, run = model.copy(), Run(0)
    batch = test.batch(range(20), model)
    before = model(batch)
    for feed in feeds(model):
        layer = model.net.get_submodule(feed.readers[0])
        heard = []
        hook = layer.register_forward_pre_hook(lambda m, args, heard=heard: heard.append(args[0]))
        model(batch)
        x, wide = heard[0].flatten(0, 1), [weight_of(model.net.get_submodule(p)).abs().amax(0) for p in feed.readers]
        with torch.no_grad():
            MPTQViT()._smooth(model.net, feed, x.mean(0), x.amin(0), x.amax(0))
        model(batch)
        hook.remove()
        now = heard[1].flatten(0, 1)
        scale = ((x - x.mean(0)).abs().amax(0) / torch.stack(wide).amax(0)).sqrt()
        torch.testing.assert_close(now, (x - x.mean(0)) / scale, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(model(batch), before, atol=1e-3, rtol=1e-3)
    assert run.infer(model, train.take(range(8)), lambda b, out: out).isfinite().all()


@pytest.mark.parametrize("mixed", [False, True])
def test_the_model_holds_its_grids_and_moves_less(mixed):
    model, train, test = trained()
    run = Run(0)
    before = run.infer(model, test, lambda b, out: out)
    after = run.step(MPTQViT(bits=4, mixed=mixed, most=6, tolerance=9.0), model.copy(), train)
    widths = {path: grid.bits for path, grid in after.grids.items()}
    size = {path: weight_of(after.net.get_submodule(path)).numel() for path in widths}
    assert len(widths) == 12 and sum(widths[p] * size[p] for p in widths) <= 4 * sum(size.values())
    assert (len(set(widths.values())) > 1) == mixed
    assert all(after.grids[p].holds(weight_of(after.net.get_submodule(p))) for p in widths)
    assert all(type(m.reads).__name__ == ("Regions" if "fc2" in p else "Rounder") for p in widths
               for m in [after.net.get_submodule(p)])  # fmt: skip
    assert moved(run, before, after, test) < moved(run, before, naive(run, model.copy(), 4), test)
    assert moved(run, before, after.copy(), test) == moved(run, before, after, test)


def test_norms_without_a_bias_and_gated_neurons():
    at = world("text")
    after = MPTQViT(bits=6, mixed=False, rows=8, tolerance=9.0)(at["teacher"].copy(), at["data"])
    assert all(m.bias is None for m in after.net.modules() if isinstance(m, torch.nn.Linear))
    assert type(after.net.model.layers[0].mlp.down_proj.reads).__name__ == "Rounder"


@pytest.mark.parametrize(
    "fields", [{"bits": 9.0}, {"bits": 4.5, "mixed": False}, {"least": 5}, {"alpha": 2.0}, {"ratios": -1}, {"rows": 0}]
)
def test_bad_input_is_named(fields):
    model, train, _ = trained()
    with pytest.raises(ValueError, match=next(iter(fields))):
        MPTQViT(**fields)(model.copy(), train)


def test_what_cannot_be_rounded_is_refused():
    model, train, _ = trained()
    once = MPTQViT(mixed=False, rows=8, tolerance=9.0)(model.copy(), train)
    with pytest.raises(ValueError, match="quantized already"):
        MPTQViT(rows=8)(once, train)
    with pytest.raises(ValueError, match="known"):
        MPTQViT()(world("digits")["teacher"], world("digits")["data"])


def measure(seed: int, arm: str) -> float:
    model, train, test = trained()
    run = Run(seed)
    before = run.infer(model, test, lambda b, out: out)
    if arm == "method":
        after = run.step(MPTQViT(bits=4, most=6, tolerance=9.0), model.copy(), train)
    else:
        after = naive(run, model.copy(), 4)
    return moved(run, before, after, test)


CLAIM = Claim(
    method="mptq_vit",
    world="digits",
    rival="weights, inputs and probabilities to the nearest",
    quantity="relative distance of the logits on unseen rows, everything in 4 bits on average",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
