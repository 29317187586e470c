from __future__ import annotations

import pytest

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.methods.compress.quantize.saliency_apiq import SaliencyApiQ
from trainlore.nouns import Model
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.fisher import saliency
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world

FEW = {"per": 16, "rank": 4, "rows": 16, "epochs": 4, "tolerance": 9.0}


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
