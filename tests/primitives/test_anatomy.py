from __future__ import annotations

import pytest
import torch
import transformers

from trainlore.nouns import Model
from trainlore.primitives.anatomy import bodies, feeds, rescale

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
NETS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **SIZES)),
    "qwen": lambda: transformers.Qwen3ForCausalLM(
        transformers.Qwen3Config(vocab_size=50, num_key_value_heads=2, head_dim=8, **SIZES)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=4)
    ),
    "bert": lambda: transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=50, **SIZES)),
    "vit": lambda: transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SIZES)
    ),
}


def small(name: str) -> tuple[Model, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    for weight in net.parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 0.7, 0.3)
    if name == "vit":
        return Model.of(net), {"pixel_values": torch.randn(2, 1, 8, 8)}
    return Model.of(net), {"input_ids": torch.randint(0, 50, (2, 6))}


@pytest.mark.parametrize("name", NETS)
def test_scales_can_be_moved_through_every_feed(name):
    model, batch = small(name)
    want = model(batch)
    found = feeds(model)
    assert len(found) == 2 * {"llama": 4, "qwen": 3, "gpt2": 2, "bert": 1, "vit": 3}[name]
    for feed in found:
        source = model.net.get_submodule(feed.source)
        channels = len(source.weight) if feed.norm else source.out_features
        rescale(model.net, feed, torch.rand(channels) + 0.5)
    torch.testing.assert_close(model(batch), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_heads_and_neurons_are_where_they_are_said_to_be(name):
    """A head or neuron whose columns are zero where it is read is one whose making cannot be seen any more."""
    model, batch = small(name)
    from trainlore.primitives.masks import weight_of, write

    body = bodies(model)[1]
    assert (body.heads, body.groups, body.width) == {"qwen": (4, 2, 8)}.get(name, (4, 4, 4))
    for reader, makers, columns in (
        (body.heads_out, body.heads_in, slice(0, body.width)),
        (body.neurons_out, body.neurons_in, slice(3, 4)),
    ):
        layer = model.net.get_submodule(reader)
        weight = weight_of(layer).clone()
        weight[:, columns] = 0
        write(layer, weight)
        want = model(batch)
        maker = model.net.get_submodule(makers[0])
        weight = weight_of(maker).clone()
        weight[columns] += 1.0
        write(maker, weight)
        torch.testing.assert_close(model(batch), want)


def test_an_unknown_family_is_named():
    with pytest.raises(ValueError, match="T5ForConditionalGeneration"):
        config = transformers.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
        bodies(Model.of(transformers.T5ForConditionalGeneration(config)))
