from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.methods.compress.quantize.saliency_apiq import SaliencyApiQ, clipping, rounded, saliency
from trainlore.nouns import Model
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world

FEW = {"per": 16, "rank": 4, "rows": 16, "epochs": 4, "tolerance": 9.0}


@pytest.mark.parametrize("per", ["channel", 4])
def test_clipped_rounding_against_a_loop(per):
    g = torch.Generator().manual_seed(0)
    w = torch.randn(3, 8, generator=g)
    lanes = 3 if per == "channel" else 6
    low, high = torch.randn(lanes, 1, generator=g), torch.randn(lanes, 1, generator=g)
    scale, zero = clipping(w, low, high, 2, per)
    got = rounded(w, scale, zero, 2, per)
    width = 8 if per == "channel" else 4
    for lane in range(lanes):
        own = w.flatten()[lane * width : (lane + 1) * width]
        least = min(0.0, float(own.min())) / (1 + float((-low[lane]).exp()))
        most = max(0.0, float(own.max())) / (1 + float((-high[lane]).exp()))
        step = (most - least) / 3
        middle = round(-least / step)
        for i, value in enumerate(own.tolist()):
            want = (min(3, max(0, round(value / step) + middle)) - middle) * step
            assert float(got.flatten()[lane * width + i]) == pytest.approx(want, abs=1e-6)


def test_saliency_is_the_mean_squared_gradient_of_single_rows():
    at, run = world("text"), Run(0)
    model, layers = at["teacher"], dict(list(matrices(at["teacher"].net).items())[:2])
    model.net.requires_grad_(True)
    got = saliency(model, layers, batches_of(run, model, at["data"], 6, 1, "x"))
    whole = batches_of(run, model, at["data"], 6, 6, "x")[0]
    each = per_row(rowwise("causal", whole, model(whole)), whole, "causal")
    for path, layer in layers.items():
        slopes = [torch.autograd.grad(row, layer.weight, retain_graph=True)[0].square() for row in each]
        torch.testing.assert_close(got[path], torch.stack(slopes).mean(0), rtol=1e-3, atol=1e-9)
    assert all(p.requires_grad and p.grad is None for p in model.net.parameters())


def test_two_bits_and_thin_matrices_beside_them_come_nearer_than_rounding():
    at, run = world("text"), Run(0)
    plain = Nearest(bits=2, per=16, tolerance=9.0)(at["teacher"].copy())
    after = run.step(SaliencyApiQ(**{**FEW, "epochs": 10, "lr": 5e-3}), at["teacher"].copy(), at["data"])
    outputs = [run.infer(m, at["held_out"], lambda b, out: out[:, :8]) for m in (at["teacher"], plain, after)]
    assert (outputs[2] - outputs[0]).norm() < 0.9 * (outputs[1] - outputs[0]).norm()
    for path in matrices(at["teacher"].net):
        layer = after.net.get_submodule(path)
        assert after.grids[path].bits == 2 and after.grids[path].holds(layer.make.weight)
        assert layer.make.up.shape[1] == 4 and layer.make.up.abs().sum() > 0
    trained = {name.rpartition(".")[2] for name, p in after.net.named_parameters() if p.requires_grad}
    assert trained == {"up", "down"}


def test_the_term_holds_what_the_loss_feels():
    at, run = world("text"), Run(0)
    layers = matrices(at["teacher"].net)
    felt = saliency(at["teacher"], layers, batches_of(run, at["teacher"], at["data"], 16, 1, "saliency_apiq"))
    held = []
    for weight in (0.0, 1.0):
        after = run.step(SaliencyApiQ(saliency=weight, **FEW), at["teacher"].copy(), at["data"])
        gaps = {p: after.net.get_submodule(p).make.weight - weight_of(layer) for p, layer in layers.items()}
        held.append(sum(float((felt[p] * gap.square()).sum()) for p, gap in gaps.items()))
    assert held[1] < held[0]


def test_layers_that_keep_their_weight_turned():
    from transformers import GPT2Config, GPT2LMHeadModel

    at = world("text")
    config = GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=384, n_positions=64, bos_token_id=1, eos_token_id=2)
    model = Model(GPT2LMHeadModel(config), "causal", at["teacher"].tokenizer)
    after = SaliencyApiQ(**FEW)(model, at["data"])
    for path, grid in after.grids.items():
        assert grid.holds(after.net.get_submodule(path).make.weight)
    assert after.net.transformer.h[0].mlp.c_fc.make.weight.shape == (64, 16)


@pytest.mark.parametrize("fields", [{"bits": 1}, {"rank": 0}, {"epochs": 0}, {"saliency": -1.0}, {"rows": 0}])
def test_bad_fields_are_named(fields):
    at = world("text")
    with pytest.raises(ValueError, match=f"{next(iter(fields))}="):
        SaliencyApiQ(**{**FEW, **fields})(at["teacher"].copy(), at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    fields = {"rank": 4, "rows": 16, "size": 4, "epochs": 8, "tolerance": 9.0} | (
        {} if arm == "method" else {"saliency": 0.0}
    )
    model = run.step(SaliencyApiQ(**fields), at["teacher"].copy(), at["data"])
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="saliency_apiq",
    world="text",
    rival="ApiQ, the same without saliency",
    quantity="relative distance of the logits on unseen rows at 2 bits",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
