from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.primitives.masks import matrices, top, weight_of
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


def test_two_of_every_four_neighbours_stay_and_they_are_the_largest():
    before, after, _ = pruned("text", pattern="2:4")
    for n, w in after.items():
        for row, old in zip(w.tolist(), before[n].tolist(), strict=True):
            for at in range(0, len(row), 4):
                four = [abs(v) for v in old[at : at + 4]]
                kept = [i for i in range(4) if row[at + i]]
                assert sorted(four[i] for i in kept) == sorted(four)[2:]


def test_a_turned_layer_is_cut_along_its_inputs():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = Magnitude(pattern="1:4", tolerance=9.0)(GPT2LMHeadModel(config))
    for layer in matrices(model.net).values():
        assert set((weight_of(layer).unflatten(1, (-1, 4)) != 0).sum(-1).flatten().tolist()) == {1}


def test_head_and_embedding_stay_and_can_be_named():
    at = world("text")
    before = at["teacher"].net.lm_head.weight.detach().clone()
    assert torch.equal(Run(0).step(Magnitude(keep=0.7), at["teacher"]).net.lm_head.weight, before)
    after = Run(0).step(Magnitude(keep=0.7, targets=("lm_head",)), world("text")["teacher"])
    assert (after.net.model.embed_tokens.weight == 0).float().mean() == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(
    "fields", [{"keep": 0.0}, {"keep": 1.1}, {"scope": "row"}, {"pattern": "5:4"}, {"targets": ("nothing",)}]
)
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
