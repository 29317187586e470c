from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.primitives.masks import matrices, top
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def pruned(name: str, **fields):
    at = world(name)
    before = {n: m.weight.detach().clone() for n, m in matrices(at["teacher"].net).items()}
    after = Run(0).step(Magnitude(**fields), at["teacher"])
    return before, {n: m.weight.detach() for n, m in matrices(after.net).items()}, after


def test_global_pruning_against_a_sorted_list():
    before, after, _ = pruned("digits", keep=0.3)
    everything = sorted(abs(v) for w in before.values() for v in w.flatten().tolist())
    k = round(0.3 * len(everything))
    least = everything[-k]
    assert sum(int((w != 0).sum()) for w in after.values()) == k
    for n, w in after.items():
        assert torch.equal(w, before[n] * (before[n].abs() >= least))


def test_layers_by_themselves_keep_the_same_share_each():
    _, after, _ = pruned("text", keep=0.75, scope="layer")
    assert {int((w != 0).sum()) / w.numel() for w in after.values()} == {0.75}


def test_head_and_embedding_stay_and_can_be_named():
    at = world("text")
    before = at["teacher"].net.lm_head.weight.detach().clone()
    assert torch.equal(Run(0).step(Magnitude(keep=0.7), at["teacher"]).net.lm_head.weight, before)
    after = Run(0).step(Magnitude(keep=0.7, targets=("lm_head",)), world("text")["teacher"])
    assert (after.net.model.embed_tokens.weight == 0).float().mean() == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("fields", [{"keep": 0.0}, {"keep": 1.1}, {"scope": "row"}, {"targets": ("nothing",)}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Magnitude(**fields)(world("digits")["teacher"])


def measure(seed: int, arm: str) -> float:
    """How far the outputs of the model move."""
    at, run = world("digits"), Run(seed)
    before, model = run.infer(at["teacher"], at["test"], lambda b, out: out), at["teacher"].copy()
    if arm == "method":
        model = run.step(Magnitude(keep=0.5), model)
    else:
        for n, m in matrices(model.net).items():
            noise = torch.rand(m.weight.shape, generator=run.rng("random weights", n))
            m.weight.data *= top(noise, 0.5)
    after = run.infer(model, at["test"], lambda b, out: out)
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="magnitude",
    world="digits",
    rival="random weights set to zero",
    quantity="relative distance of the outputs at half of the weights",
    better="lower",
    measure=measure,
    seeds=20,
    quick=4,
)
