"""The parts of a transformer block by what they do: who reads which norm, which layers make up a head or a neuron.

Known are the decoders built like Llama (Qwen, Mistral and kin), GPT-2, BERT and ViT of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.masks import weight_of, write

# within a block: queries, keys and values (one path where they are fused), what puts the heads together,
# what makes the neurons, what reads them, the norm before attention, the norm before the neurons ("": none before)
FORMS: tuple[tuple[tuple[str, ...], str, tuple[str, ...], str, str, str], ...] = (
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
        "input_layernorm",
        "post_attention_layernorm",
    ),
    (("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj", "ln_1", "ln_2"),
    (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
        "",
        "",
    ),
    (
        ("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        "attention.o_proj",
        ("mlp.fc1",),
        "mlp.fc2",
        "layernorm_before",
        "layernorm_after",
    ),
)


@dataclass(frozen=True)
class Body:
    """One block, its parts by their paths in the net."""

    path: str
    heads_in: tuple[str, ...]  # queries, keys, values; one path where they are fused, in this order along its outputs
    heads_out: str  # reads the heads, one after the other
    neurons_in: tuple[str, ...]  # the last makes what is passed on; a first one before it only gates
    neurons_out: str
    norm_heads: str  # "" where the norm comes after, and the residual stream reads it too
    norm_neurons: str
    heads: int
    groups: int  # heads of keys and values: each serves heads / groups queries
    width: int  # of one head


def bodies(model: Model) -> list[Body]:
    """The blocks of the model. Raises Bad for a family that is not known here."""
    config = getattr(model.net, "config", None)
    path_of = {id(m): path for path, m in model.net.named_modules()}
    found = []
    for block in model.blocks:
        own = {path for path, _ in block.named_modules()}
        form = next((f for f in FORMS if {*f[0], f[1], *f[2], f[3]} <= own), None)
        if form is None or config is None:
            name = type(model.net).__name__
            raise Bad(
                f"the blocks of {name} are not known part by part: known are Llama and its kin, GPT-2, BERT and ViT"
            )
        at = path_of[id(block)]
        (*into,), out, (*made,), read, first, second = form
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        out_layer = block.get_submodule(out)
        heads = weight_of(out_layer).shape[1] // width  # as it is now: a pruned block has fewer
        groups = heads
        if len(into) == 3:
            groups = weight_of(block.get_submodule(into[1])).shape[0] // width
        found.append(
            Body(
                at,
                tuple(f"{at}.{p}" for p in into),
                f"{at}.{out}",
                tuple(f"{at}.{p}" for p in made),
                f"{at}.{read}",
                f"{at}.{first}" if first else "",
                f"{at}.{second}" if second else "",
                heads,
                groups,
                width,
            )
        )
    return found


@dataclass(frozen=True)
class Feed:
    """Layers that read exactly what one source gives, up to a change of each channel's scale that commutes."""

    source: str
    readers: tuple[str, ...]
    norm: bool  # whether the source is a norm (scale and, mostly, shift) or a linear layer whose outputs are channels


def feeds(model: Model) -> list[Feed]:
    """All places where a scale a channel can be taken out of a source and into its readers without changing the model.

    Norms into what reads them, values into what puts the heads together (where every head has its own), and the passed-on
    half of gated neurons into what reads them.
    """
    found = []
    for body in bodies(model):
        if body.norm_heads:
            found.append(Feed(body.norm_heads, body.heads_in, True))
        if len(body.heads_in) == 3 and body.heads == body.groups:
            found.append(Feed(body.heads_in[2], (body.heads_out,), False))
        if body.norm_neurons:
            found.append(Feed(body.norm_neurons, body.neurons_in, True))
        if len(body.neurons_in) == 2:
            found.append(Feed(body.neurons_in[1], (body.neurons_out,), False))
    return found


@torch.no_grad()
def rescale(net: nn.Module, feed: Feed, scale: Tensor, readers: Sequence[str] | None = None) -> None:
    """Divide what the source gives by scale (channels,) and multiply what its readers do with it: the same outputs."""
    source = net.get_submodule(feed.source)
    scale = scale.float()
    if feed.norm:
        source.weight.copy_(source.weight.float() / scale)
    else:
        write(source, weight_of(source).float() / scale[:, None])
    if getattr(source, "bias", None) is not None:
        source.bias.copy_(source.bias.float() / scale)
    for path in feed.readers if readers is None else readers:
        layer = net.get_submodule(path)
        write(layer, weight_of(layer).float() * scale)
