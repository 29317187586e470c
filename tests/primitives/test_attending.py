from __future__ import annotations

import copy
import math

import pytest
import torch

from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.activations import Rounder
from trainlore.primitives.attending import attend, attend_through, attentions, opened, overheard
from trainlore.primitives.calibrating import walk
from trainlore.worlds.tiny import llama


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def grouped():
    """A Llama in which two heads of queries share one of keys and values, and a batch with padding."""
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    tokens = torch.randint(0, 40, (3, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[1, :3] = 0
    return Model.of(config, "causal"), {"input_ids": tokens, "attention_mask": mask}


def vit():
    return preset("vit-digits", seed=0, num_hidden_layers=2), {"pixel_values": rand(2, 1, 8, 8)}


def test_against_a_loop():
    q, k, v = rand(2, 4, 3, 5), rand(2, 2, 6, 5, seed=1), rand(2, 2, 6, 5, seed=2)
    module = torch.nn.Module().eval()
    module.probabilities = Rounder("uint4", "tensor", torch.tensor([1 / 15]))
    got, shares = attend(module, q, k, v, None)
    for b in range(2):
        for h in range(4):
            for t in range(3):
                scores = [float(q[b, h, t].double() @ k[b, h // 2, s].double()) / math.sqrt(5) for s in range(6)]
                total = sum(math.exp(s) for s in scores)
                rounded = [round(15 * math.exp(s) / total) / 15 for s in scores]
                want = sum(p * v[b, h // 2, s] for s, p in enumerate(rounded))
                torch.testing.assert_close(got[b, t, h], want.float())
                torch.testing.assert_close(shares[b, h, t], torch.tensor(rounded))


@pytest.mark.parametrize("made", [grouped, vit])
def test_a_module_that_changes_nothing_changes_nothing(made):
    model, batch = made()
    before = model(batch)
    heard = []
    for path in attentions(model):
        attend_through(model, path, torch.nn.Identity())
        model.net.get_submodule(path).probabilities.register_forward_hook(lambda m, a, out: heard.append(out))
    real = batch.get("attention_mask", torch.ones(2)).bool()  # what padding gives is no part of any answer
    torch.testing.assert_close(model(batch)[real], before[real])
    assert len(heard) == 2 and all(((p.sum(-1) - 1).abs() < 1e-5).all() for p in heard)
    if "attention_mask" in batch:
        last = heard[0][1, :, 3:]
        assert (last[..., :3] == 0).all() and (heard[0][0].triu(1) == 0).all()


@pytest.mark.parametrize("made", [grouped, vit])
def test_what_rounds_is_part_of_the_net(made):
    model, batch = made()
    before, names = model(batch), set(model.net.state_dict())
    path = next(iter(attentions(model)))
    attend_through(model, path, Rounder("uint3", "tensor", torch.tensor([1 / 40])))
    rounded = model(batch)
    assert float((rounded - before).detach().norm()) > 1e-4
    assert set(model.net.state_dict()) - names == {f"{path}.probabilities.{n}" for n in ("scale", "zero")}
    other = model.copy()
    torch.testing.assert_close(other(batch), rounded)
    other.net.get_submodule(path).probabilities.scale.fill_(1.0)
    assert not torch.equal(other(batch), rounded) and torch.equal(model(batch), rounded)
    attend_through(model, path, torch.nn.Identity())  # in the place of the other, not after it
    real = batch.get("attention_mask", torch.ones(2)).bool()  # what padding gives is no part of any answer
    torch.testing.assert_close(model(batch)[real], before[real])
    with pytest.raises(ValueError, match="rounds what it reads"):
        other.save("nowhere")


def test_a_call_made_for_another_kernel_gives_the_same():
    q, k, v = rand(1, 2, 4, 3), rand(1, 2, 4, 3, seed=1), rand(1, 2, 4, 3, seed=2)
    seen = torch.ones(4, 4, dtype=torch.bool).tril()
    added = torch.zeros(4, 4).masked_fill(~seen, torch.finfo(torch.float32).min)
    module = torch.nn.Module().eval()
    causal = copy.deepcopy(module)
    causal.is_causal = True
    want = attend(module, q, k, v, added)[0]
    torch.testing.assert_close(attend(module, q, k, v, seen)[0], want)
    torch.testing.assert_close(attend(causal, q, k, v, None)[0], want)
    torch.testing.assert_close(attend(causal, q[:, :, -1:], k, v, None)[0], want[:, -1:])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="known"):
        attentions(preset("mlp"))
    with pytest.raises(ValueError, match="no model of transformers"):
        attend_through(preset("mlp"), "0", torch.nn.Identity())
    with pytest.raises(ValueError, match="cannot be reached"):
        attend_through(llama(), "model.layers.0.mlp", torch.nn.Identity())
    with pytest.raises(ValueError, match="softcap"):
        attend(torch.nn.Module(), *(rand(1, 1, 2, 2),) * 3, None, softcap=30.0)


def test_opened_attention_is_overheard():
    from trainlore.primitives.blocks import inside

    model, batch = vit()
    before, paths = model(batch), opened(model)
    assert list(paths.values()) == list(attentions(model)) and all(at.startswith(b) for b, at in paths.items())
    torch.testing.assert_close(model(batch), before)
    unit = next(walk(model, inside(model), [batch, batch]))
    heard, shares = overheard(model, unit, paths[unit.path])
    assert heard.keys() == unit.layers.keys() and all(len(x) == 2 * 2 * 17 for x in heard.values())
    heads = model.net.config.num_attention_heads
    assert shares.shape == (2 * 2 * heads * 17 * 17,) and abs(float(shares.sum()) - 4 * heads * 17) < 1e-2
