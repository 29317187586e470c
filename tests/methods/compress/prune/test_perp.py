from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.fold import Fold
from trainlore.methods.adapt.peft.lora import LoRA
from trainlore.methods.compress.distil.kd import KD
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.prune.perp import PERP, Adapter, masked
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.masks import matrices, weight_of, write
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

PRUNED = Magnitude(keep=0.4, scope="layer", tolerance=9.0)


def loss(run, model, data):
    def read(batch, out):
        return nn.functional.cross_entropy(out[:, :7].flatten(0, 1), batch["input_ids"][:, 1:8].flatten()).expand(
            len(out)
        )

    return float(run.infer(model, data, read).mean())


def test_the_two_updates_against_a_loop():
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(5, 3, bias=False)
    layer.weight.data[torch.rand(3, 5, generator=g) < 0.5] = 0.0
    w = layer.weight.detach().clone()
    for how in ("mask", "scale"):
        adapter = Adapter(layer, how, 2, 6.0, g)
        torch.testing.assert_close(adapter(w), w)  # nothing changes at the start
        adapter.up.data, adapter.down.data = torch.randn(3, 2, generator=g), torch.randn(2, 5, generator=g)
        got = adapter(w).detach()
        for i in range(3):
            for j in range(5):
                change = sum(float(adapter.up.data[i, k]) * float(adapter.down.data[k, j]) for k in range(2))
                want = float(w[i, j]) * change if how == "scale" else float(w[i, j]) + 3.0 * change
                assert float(got[i, j]) == pytest.approx(want if w[i, j] else 0.0, abs=1e-5)
    assert torch.equal(masked(w, torch.zeros(3, 5), 1.0), w)


@pytest.mark.parametrize("update", ["mask", "scale", "none"])
@pytest.mark.parametrize("how", ["retrain", "reconstruct"])
def test_zeros_stay_and_only_what_was_named_moves(update, how):
    at, run = world("text"), Run(0)
    model = run.step(PRUNED, at["teacher"].copy())
    model.net.lm_head.weight.requires_grad_(False)
    before = {n: v.clone() for n, v in model.net.state_dict().items()}
    dense = at["teacher"] if how == "reconstruct" else None
    after = run.step(PERP(update=update, rank=2, steps=8, lr=1e-2, dense=dense, rows=16), model, at["data"])
    now = after.net.state_dict()
    assert now.keys() == before.keys() and not after.net.lm_head.weight.requires_grad
    for path, layer in matrices(after.net).items():
        assert torch.equal(weight_of(layer) == 0, before[f"{path}.weight"] == 0)
        assert torch.equal(layer.weight, before[f"{path}.weight"]) == (update == "none")
    moved = {n for n in now if not torch.equal(now[n], before[n])}
    assert "model.embed_tokens.weight" not in moved
    if how == "retrain":
        assert {n for n in now if "norm" in n} <= moved


def test_reconstruction_brings_the_outputs_back():
    at, run = world("text"), Run(0)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    gap = []
    for methods in ((), (PERP(rank=8, steps=60, lr=5e-3, dense=at["teacher"], rows=64),)):
        model = run.step(PRUNED, at["teacher"].copy())
        for method in methods:
            model = run.step(method, model, at["data"])
        gap.append(float((run.infer(model, at["held_out"], lambda b, out: out[:, :8]) - before).norm()))
    assert gap[1] < 0.8 * gap[0]


def test_biases_alone():
    at, run = world("digits"), Run(0)
    model = run.step(PRUNED, at["teacher"].copy())
    weights = {p: weight_of(m).clone() for p, m in matrices(model.net).items()}
    biases = {p: m.bias.detach().clone() for p, m in matrices(model.net).items()}
    after = run.step(PERP(update="none", norms=False, steps=5, size=32), model, at["data"])
    for path, layer in matrices(after.net).items():
        assert torch.equal(weight_of(layer), weights[path]) and not torch.equal(layer.bias, biases[path])


def test_bad_input_is_named():
    at = world("text")
    given = lambda **fields: PERP(**{"steps": 1, **fields})(at["teacher"].copy(), at["data"])
    for fields, word in (
        ({"update": "lora"}, "update"),
        ({"rank": 0}, "rank"),
    ):
        with pytest.raises(ValueError, match=word):
            given(**fields)
    with pytest.raises(ValueError, match="nothing to train"):
        given(update="none", norms=False)
    with pytest.raises(ValueError, match="dense"):
        given(dense=world("digits")["teacher"])
    with pytest.raises(ValueError, match="inner"):
        given(dense=at["teacher"], inner=(KD(teacher=at["teacher"]),))
    with pytest.raises(ValueError, match="quantized already"):
        PERP(steps=1)(Nearest(tolerance=9.0)(at["teacher"].copy()), at["data"])


def measure(seed: int, arm: str) -> float:
    """Held-out loss of a model with three quarters of its weights gone, retrained through norms and a low-rank change."""
    at, run = world("text"), Run(seed)
    model = run.step(Magnitude(keep=0.25, scope="layer", tolerance=9.0), at["teacher"].copy())
    if arm == "method":
        return loss(run, run.step(PERP(rank=4, alpha=8.0, steps=40, lr=1e-2), model, at["data"]), at["held_out"])
    zeros = {path: weight_of(m) == 0 for path, m in matrices(model.net).items()}
    model = run.step(LoRA(rank=4, alpha=8.0, trainable=("norm",)), model)
    model = run.fit(model, at["data"], steps=40, **(HOW["text"] | {"lr": 1e-2}))
    model = run.step(Fold(), model)
    for path, layer in matrices(model.net).items():
        write(layer, weight_of(layer).masked_fill(zeros[path], 0.0))
    return loss(run, model, at["held_out"])


CLAIM = Claim(
    method="perp",
    world="text",
    rival="LoRA, its change masked when it is merged",
    quantity="loss on unseen rows with a quarter of the weights left",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
