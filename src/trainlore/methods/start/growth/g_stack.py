from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

from torch import nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.reparam import reshaped
from trainlore.runs import Run
from trainlore.verbs import Shape, method

DEPTHS = (
    "num_hidden_layers",
    "num_layers",
    "num_decoder_layers",
    "n_layer",
    "n_layers",
    "encoder_layers",
    "decoder_layers",
)


@method(
    name="g_stack",
    title="G_stack: depth-wise stacking",
    paper="arXiv:2405.15319",
    lit="p308",
    family="start/growth",
    year=2024,
    tier="core",
    status="stable",
    code="tongxuluo/prts",
)
class GStack(Shape):
    """Grow a briefly trained model by stacking copies of all its layers on top of one another.

    ## What it does
    A small model of L layers is trained for d tokens, then its whole stack of layers is repeated `times` over, and the
    deep model is trained on with a normal schedule and a fresh optimizer:

        layers = [1 .. L] + [1 .. L] + ...        (`times` copies; embeddings, final norm and head once)

    Every index of a layer (cache slots, lists of layer types, depth-scaled attention) and the config follow, so the grown
    model saves, reloads and generates like one built at its depth. Encoder-decoder models grow both stacks.

    ## Claim
    A 7B model grown this way reaches with 194B tokens the loss of one trained conventionally on 300B, 54.6% less work;
    holds up to 7B weights and 750B tokens. How long to train the small one, with N weights of the target and C its FLOPs:

        log10(d) = 0.88 log10(N) + 163.27 / log10(C) - 5.74          (`growth_tokens`; 11.1B for a 7B model and 2T tokens)

    ## Cost
    A copy of the weights. The saving comes from the steps taken while the model was small.

    ## Fields worth tuning
    `times`: the paper fixes 4.

    ## Watch out
    The loss jumps at the growth (this is not function-preserving) and falls below the old curve only after more steps: judge
    it at the end of the budget. Optimizer state is not carried over. Grow before adapters, or `fold` them first.

    ## Differs from the paper
    The authors' code rebuilds the deep model from a list of source layers that may be any list; here it is whole copies,
    the case the paper settles on. Encoder-only, encoder-decoder and vision models are an extension of ours.
    """

    times: int = 4
    """How often the stack of layers is repeated."""

    null = {"times": 1}
    tiny = {"world": "digits", "times": 2}

    def __call__(self, run: Run, model: Model) -> Model:
        if self.times < 1:
            raise Bad(f"times must be 1 or more, not {self.times}")
        if self.times > 1:
            stack(model, self.times)
        return reshaped(model)


def growth_tokens(weights: float, work: float) -> float:
    """Tokens to train the small model for, from the target's number of weights and the FLOPs it would be trained with."""
    return 10 ** (0.88 * math.log10(weights) + 163.27 / math.log10(work) - 5.74)


def stack(model: Model, times: int) -> None:
    """Repeat the model's stacks of layers in place, and make every index of a layer and the configs follow."""
    net, found = model.net, stacks(model)
    configs = {id(m.config): m.config for m in net.modules() if hasattr(getattr(m, "config", None), "to_dict")}
    for blocks in found.values():
        for block in list(blocks) * (times - 1):
            # the config stays one object: a copy of it would miss later changes
            blocks.append(deepcopy(block, dict(configs)))
        for index, block in enumerate(blocks):
            renumber(block, index)
            if index:
                drop_position_bias(block)
    holders = [m for name, m in net.named_modules() if any(not name or path.startswith(f"{name}.") for path in found)]
    above = {id(m.config): m.config for m in holders if id(getattr(m, "config", None)) in configs}
    if above and not sum([deepen(config, times) for config in above.values()]):
        raise Bad(
            f"{type(net.config).__name__} does not say how many layers there are: the grown model could not reload"
        )


def stacks(model: Model) -> dict[str, nn.ModuleList | nn.Sequential]:
    """The lists of repeated layers by path: one, or the encoder's and the decoder's, which go by the same name."""
    named = dict(model.net.named_modules())
    path = next(name for name, m in named.items() if m is model.blocks)
    if not getattr(getattr(model.net, "config", None), "is_encoder_decoder", False):
        return {path: model.blocks}
    last = path.rpartition(".")[2]
    alike = {n: m for n, m in named.items() if n.rpartition(".")[2] == last and isinstance(m, nn.ModuleList)}
    return {n: m for n, m in alike.items() if not any(n.startswith(f"{other}.") for other in alike)}


def renumber(block: nn.Module, index: int) -> None:
    """Tell the modules of a block that it is now the one at this index."""
    for module in block.modules():
        old = vars(module).get("layer_idx")
        if old is None:
            continue
        if getattr(module, "scale_attn_by_inverse_layer_idx", False):  # GPT-2 keeps the quotient, not the index
            module.scaling *= (old + 1) / (index + 1)
        module.layer_idx = index


def drop_position_bias(block: nn.Module) -> None:
    """Only the first layer of a T5 stack holds the relative position bias; all others are handed it."""
    for module in block.modules():
        if getattr(module, "has_relative_attention_bias", False):
            module.has_relative_attention_bias = False
            del module.relative_attention_bias


def deepen(config: Any, times: int) -> bool:
    """Multiply every depth in a transformers config, and repeat its lists with one entry a layer; whether there was one."""
    own = {k: v for k, v in config.to_dict().items() if v is not None}
    depths = [k for k in DEPTHS if k in own]
    lists = [k for k, v in own.items() if "layer" in k and isinstance(v, list) and depths and len(v) == own[depths[0]]]
    for key in depths + lists:
        setattr(config, key, own[key] * times)
    return bool(depths)
