from __future__ import annotations

import pytest
import torch
import transformers

from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import batches_of, inputs, norms, rows_read, second_moments, unpadded, walk
from trainlore.primitives.masks import matrices, weight_of, write
from trainlore.runs import Run
from trainlore.worlds.tiny import world

SMALL = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
        )
    ),
    "qwen": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    ),
    "bert": lambda: transformers.BertForMaskedLM(
        transformers.BertConfig(
            vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2
        )
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=50, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0
        )
    ),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=8,
            patch_size=4,
            num_channels=1,
            num_labels=3,
        )
    ),
}


def small(name: str) -> tuple[Model, Data]:
    torch.manual_seed(0)
    model = Model.of(SMALL[name]().eval())
    g = torch.Generator().manual_seed(1)
    if name == "vit":
        return model, Data.of({"pixel_values": torch.randn(12, 1, 8, 8, generator=g).numpy(), "label": [0, 1, 2] * 4})
    rows = [torch.randint(2, 50, (5 + i % 4,), generator=g).tolist() for i in range(12)]
    return model, Data.of({"input_ids": rows, "labels": rows})


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("by", ["block", "layer"])
def test_a_walk_sees_what_the_changed_net_shows(name, by):
    """Every unit is called with what a pass through the whole net, changed so far, calls it with; goals with the old net."""
    model, data = small(name)
    untouched = model.copy()
    layers = matrices(model.net)
    batches = batches_of(Run(0), model, data, 12, 4, "test")
    done: list[str] = []
    for unit in walk(model, layers, batches, by, goals=True):
        for net, read in ((model, unit.__call__), (untouched, unit.goals.__getitem__)):
            seen: list[torch.Tensor] = []
            hook = net.net.get_submodule(unit.path).register_forward_hook(lambda m, a, out, s=seen: s.append(out))
            with torch.no_grad():
                for batch in batches:
                    net(batch)
            hook.remove()
            for at, out in enumerate(seen):
                out = out if isinstance(out, torch.Tensor) else out[0]
                torch.testing.assert_close(read(at), out, rtol=1e-5, atol=1e-6)
        done += unit.layers
        for layer in unit.layers.values():
            write(layer, 0.5 * weight_of(layer))
    assert sorted(done) == sorted(layers)
    assert all(p.requires_grad for p in model.net.parameters())


def test_moments_leave_padding_out():
    model, data = small("llama")
    batches = batches_of(Run(0), model, data, 12, 4, "test")
    real = sum(int(b["attention_mask"].sum()) for b in batches)
    assert real < sum(b["attention_mask"].numel() for b in batches)
    unit = next(walk(model, matrices(model.net), batches))
    path, layer = next(iter(unit.layers.items()))
    rows = []
    hook = layer.register_forward_pre_hook(lambda m, args: rows.append(args[0]))
    for at in range(len(batches)):
        unit(at)
    hook.remove()
    x = torch.cat([r[b["attention_mask"].bool()] for r, b in zip(rows, batches, strict=True)])
    assert len(x) == real
    torch.testing.assert_close(second_moments(unit)[path], x.T @ x / len(x))
    torch.testing.assert_close(norms(unit)[path], x.square().mean(0).sqrt())
    assert torch.equal(inputs(unit)[path], x) and inputs(unit).keys() == unit.layers.keys()
    assert inputs(unit, path).keys() == {path} and torch.equal(inputs(unit, path)[path], x)
    values, mask = torch.arange(6).view(2, 3), torch.tensor([[True, False, True], [True, True, True]])
    assert unpadded(values, mask).tolist() == [0, 2, 3, 4, 5] and unpadded(values[:, 0], mask).tolist() == [0, 3]
    assert unpadded(values, None) is values


def test_a_convolution_is_a_matrix_times_its_patches():
    conv = torch.nn.Conv2d(3, 5, 3, stride=2, padding=1)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    want = conv(x).flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(rows_read(conv, x) @ weight_of(conv).T + conv.bias, want, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="groups"):
        rows_read(torch.nn.Conv2d(4, 4, 3, groups=4), torch.zeros(1, 4, 8, 8))


def test_bad_input_is_named():
    at = world("text")
    with pytest.raises(ValueError, match="no calibration rows"):
        batches_of(Run(0), at["model"], at["data"].take([]), 8, 4)
    with pytest.raises(ValueError, match="fewer than a batch"):
        batches_of(Run(0), at["model"], at["data"].take([0, 1, 2]), 8, 4)
    with pytest.raises(ValueError, match="neither block nor layer"):
        next(walk(at["model"], {}, [], "row"))
    model, data = small("llama")
    with torch.no_grad():
        model.net.model.embed_tokens.weight[:] = torch.inf
    batches = batches_of(Run(0), model, data, 8, 4)
    with pytest.raises(ValueError, match="infinities"):
        second_moments(next(walk(model, matrices(model.net), batches)))
