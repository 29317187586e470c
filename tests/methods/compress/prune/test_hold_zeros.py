from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.bitfit import BitFit
from trainlore.methods.adapt.peft.lora import LoRA
from trainlore.methods.compress.prune.hold_zeros import HoldZeros
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.prune.sparsegpt import SparseGPT
from trainlore.methods.compress.prune.wanda import Wanda
from trainlore.methods.train.objective.ema import EMA
from trainlore.nouns import Model
from trainlore.primitives import losses as L
from trainlore.primitives.masks import matrices, sparsity, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

FREE = {"tolerance": 9.0}
PRUNERS = {
    "magnitude": (Magnitude(keep=0.5, **FREE), False),
    "wanda": (Wanda(keep=0.5, rows=16, **FREE), True),
    "sparsegpt": (SparseGPT(keep=0.5, rows=16, **FREE), True),
    "2:4 magnitude": (Magnitude(pattern="2:4", **FREE), False),
    "2:4 wanda": (Wanda(pattern="2:4", rows=16, **FREE), True),
    "2:4 sparsegpt": (SparseGPT(pattern="2:4", rows=16, **FREE), True),
}


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {path: weight_of(layer).clone() for path, layer in matrices(model.net).items()}


def pruned(name: str, seed: int = 0) -> tuple[Model, dict]:
    at, (method, reads) = world("text", seed), PRUNERS[name]
    return Run(seed).step(method, at["teacher"], *([at["data"]] if reads else [])), at


@pytest.mark.parametrize("name", PRUNERS)
def test_zeros_and_patterns_are_those_of_the_pruner_after_training_and_saving(name, tmp_path):
    model, at = pruned(name)
    before = weights(model)
    how = {**HOW["text"], "weight_decay": 0.1}
    model = Run(0).fit(model, at["data"], HoldZeros(), EMA(decay=0.9), steps=12, **how)
    after = weights(Model.of(str(model.save(tmp_path / "model"))))
    for path, old in before.items():
        assert torch.equal(after[path] == 0, old == 0) and not torch.equal(after[path], old)
        if name.startswith("2:4"):
            assert ((after[path].unflatten(1, (-1, 4)) != 0).sum(-1) == 2).all()
    assert sparsity(after)["total"] == pytest.approx(0.5, abs=0.01)
    plain, at = pruned(name)
    plain = Run(0).fit(plain, at["data"], steps=12, **how)
    assert sparsity(weights(plain))["total"] < 0.01  # what this is for


def test_steps_are_those_of_masked_gradients_by_hand():
    at = world("digits")
    model = Run(0).step(Magnitude(keep=0.3, **FREE), at["model"])
    by_hand, rows = model.copy(), at["data"].take(range(32))
    kept = {id(layer): layer.weight.detach() != 0 for layer in matrices(by_hand.net).values()}
    Run(0).fit(model, rows, HoldZeros(), steps=1, batch_size=32, lr=0.5, weight_decay=0.0, precision="fp32")
    batch = rows.batch(range(32), by_hand)
    L.rowwise("classifier", batch, by_hand(batch)).mean().backward()
    for mine, layer in zip(matrices(model.net).values(), matrices(by_hand.net).values(), strict=True):
        slope = layer.weight.grad * kept[id(layer)]
        want = layer.weight.detach() - 0.5 * slope / (slope.abs() + 1e-8)  # the first step of Adam
        torch.testing.assert_close(mine.weight.detach(), want, atol=1e-3, rtol=1e-3)


def test_frozen_and_dense_layers_are_left_alone_and_the_report_says_so():
    at, run = world("text"), Run(0)
    run.fit(at["model"], at["data"], HoldZeros(), steps=2, **HOW["text"])
    assert run.effects[-1]["dead"]
    model, at = pruned("magnitude")
    before, run = weights(model), Run(0)
    model = run.fit(run.step(BitFit(add=True), model), at["data"], HoldZeros(), steps=2, **HOW["text"])
    assert all(torch.equal(new, before[path]) for path, new in weights(model).items())


def test_what_would_never_be_trained_is_refused():
    at, run = world("text"), Run(0)
    with pytest.raises(ValueError, match="every weight of .*lora_B.* is 0"):
        run.fit(run.step(LoRA(rank=2), at["model"]), at["data"], HoldZeros(), steps=1, **HOW["text"])
    at = world("digits")
    layer = matrices(at["model"].net)["0"]
    layer.weight.data.zero_()
    run.fit(at["model"], at["data"], HoldZeros(targets=("0",)), steps=2, **HOW["digits"])  # said so: pruned away
    assert not matrices(at["model"].net)["0"].weight.any()
    with pytest.raises(ValueError, match="below=-1"):
        run.fit(at["model"], at["data"], HoldZeros(below=-1.0), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """Held-out loss with a fifth of the weights: pruned and retrained with the zeros held, or retrained and pruned again."""
    at, run = world("text", seed), Run(seed)
    prune = Magnitude(keep=0.2, scope="layer", **FREE)
    model = run.step(prune, at["teacher"])
    model = run.fit(model, at["data"], *([HoldZeros()] if arm == "method" else []), steps=40, **HOW["text"])
    model = run.step(prune, model)  # of one that held its zeros: nothing
    rows = lambda b, out: L.per_row(L.rowwise("causal", b, out), b, "causal")
    return float(run.infer(model, at["held_out"], rows).mean())


CLAIM = Claim(
    method="hold_zeros",
    world="text",
    rival="plain fine-tuning, pruned again to as many weights",
    quantity="held-out loss with a fifth of the weights",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
