"""Making a transformer really smaller: heads and neurons leave its blocks; shapes, modules and config follow.

Heads go by whole groups: a head of keys and values with all the queries it serves. What plain `transformers` can say of
the result, its config says: the number of neurons where all blocks keep as many, and the number of heads where the
family has a width of heads of its own (Llama and kin, for numbers that divide the hidden size; ViT). GPT-2 and BERT
divide the hidden size by the number of heads, and none of them lets blocks differ: that goes into one more entry of the
config, `KEPT`, which `shaped` reads.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives import reparam
from trainlore.primitives.anatomy import Body, bodies
from trainlore.primitives.grids import free
from trainlore.primitives.masks import plain, weight_of

KEPT = "trainlore_kept"  # the config's entry: {"groups": [one a block], "neurons": [one a block]}, only what differs
PARTS = ("heads", "neurons")


# ---- cutting


def shrink(
    model: Model,
    groups: Sequence[Sequence[int] | None],
    neurons: Sequence[Sequence[int] | None] | None = None,
    told: bool = True,
) -> Model:
    """Keep these groups of heads and these neurons of each block, one entry a block in the order of `bodies`.

    None keeps all of a block's; an empty list leaves of a block's attention or neurons nothing but a bias. The net is
    changed, and given back in a new Model. Not `told`, the config stays as it was: for a try that nobody saves.
    """
    found = bodies(model)
    neurons = [None] * len(found) if neurons is None else neurons
    if len(groups) != len(found) or len(neurons) != len(found):
        raise Bad(f"there are {len(found)} blocks, and what to keep is said of {len(groups)} and {len(neurons)}")
    ready(model)
    for body, some, few in zip(found, groups, neurons, strict=True):
        if some is not None:
            keep_heads(model.net, body, _places(some, body.groups, f"groups of heads in {body.path}"))
        if few is not None:
            keep_neurons(model.net, body, _places(few, count(model.net, body), f"neurons in {body.path}"))
    if told:
        tell(model)
    return reparam.reshaped(model)


def ready(model: Model) -> None:
    """Refuse a model whose blocks are quantized or computed from other weights: they cannot be cut."""
    paths = [p for b in bodies(model) for p in (*b.heads_in, b.heads_out, *b.neurons_in, b.neurons_out)]
    layers = {path: model.net.get_submodule(path) for path in paths}
    free(model, plain(layers))


def count(net: nn.Module, body: Body) -> int:
    """The neurons of a block as it is now."""
    return weight_of(net.get_submodule(body.neurons_out)).shape[1]


def columns(net: nn.Module, body: Body, part: str) -> Tensor:
    """The inputs of the layer that reads the heads or neurons: int64 (groups or neurons, inputs of one)."""
    if part == "neurons":
        return torch.arange(count(net, body))[:, None]
    wide = body.heads * body.width
    return torch.arange(wide).view(body.groups, wide // max(1, body.groups))


def _places(kept: Sequence[int], total: int, what: str) -> Tensor:
    places = sorted({int(k) for k in kept})
    if len(places) != len(kept) or (places and not 0 <= places[0] <= places[-1] < total):
        raise Bad(f"what is kept of the {total} {what} must be different numbers from 0 to {total - 1}, not {kept}")
    return torch.tensor(places, dtype=torch.int64)


def _spread(places: Tensor, width: int) -> Tensor:
    return (places[:, None] * width + torch.arange(width)).flatten()


@torch.no_grad()
def _cut(net: nn.Module, path: str, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep these outputs and inputs of a linear layer, and the biases of the outputs."""
    layer, bias = net.get_submodule(path), None
    weight, trained = weight_of(layer), layer.weight.requires_grad
    if outputs is not None:
        weight = weight.index_select(0, outputs.to(weight.device))
    if inputs is not None:
        weight = weight.index_select(1, inputs.to(weight.device))
    if layer.bias is not None:
        bias = (
            layer.bias.detach() if outputs is None else layer.bias.detach().index_select(0, outputs.to(weight.device))
        )
        bias = nn.Parameter(bias.clone(), requires_grad=layer.bias.requires_grad)
    out, into = weight.shape
    kept = reparam.turned(layer) and into > 0  # a turned layer cannot be run without inputs
    if reparam.turned(layer) and not kept:
        was, layer = layer, nn.Linear(1, out, bias=bias is not None, device="meta")
        reparam.replace(net, path, layer.train(was.training))
    layer.weight = nn.Parameter((weight.T if kept else weight).clone(memory_format=torch.contiguous_format), trained)
    layer.bias = bias
    if kept:
        layer.nf, layer.nx = out, into
    else:
        layer.out_features, layer.in_features = out, into


def keep_heads(net: nn.Module, body: Body, kept: Tensor) -> None:
    """Leave these groups of heads of a block (int64 places, rising); the config is told later. None left: `Headless`."""
    if len(kept) == body.groups:
        return
    served = body.heads // body.groups
    path = body.heads_in[0].rpartition(".")[0]
    attention = net.get_submodule(path)
    known = {p.rpartition(".")[2] for p in (*body.heads_in, body.heads_out)}
    for name, child in attention.named_children():
        if name not in known and any(body.width < len(p) for p in child.parameters() if p.dim() == 1):
            raise Bad(f"{path}.{name} acts across heads: the heads of this model cannot be taken out one by one")
    wide, narrow = _spread(kept, served * body.width), _spread(kept, body.width)
    if len(body.heads_in) == 1:
        whole = body.heads * body.width
        _cut(net, body.heads_in[0], outputs=torch.cat([wide + at * whole for at in range(3)]))
    else:
        for layer, places in zip(body.heads_in, (wide, narrow, narrow), strict=True):
            _cut(net, layer, outputs=places)
    _cut(net, body.heads_out, inputs=wide)
    heads = len(kept) * served
    now = {"num_heads": heads, "num_attention_heads": heads, "num_key_value_heads": len(kept)}
    for name, value in {**now, "all_head_size": heads * body.width, "split_size": heads * body.width}.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
    if not heads:
        last = body.heads_out.removeprefix(f"{path}.")
        reparam.replace(net, path, Headless(attention, "" if "." in last else last))


def keep_neurons(net: nn.Module, body: Body, kept: Tensor) -> None:
    """Leave these neurons of a block (int64 places, rising); the config is told later."""
    for path in body.neurons_in:
        _cut(net, path, outputs=kept)
    _cut(net, body.neurons_out, inputs=kept)
    module = net.get_submodule(body.neurons_out.rpartition(".")[0])
    if hasattr(module, "intermediate_size"):
        module.intermediate_size = len(kept)


class Headless(nn.Module):
    """What is left of attention whose heads are all gone: the bias of the layer that put them together."""

    def __init__(self, attention: nn.Module, last: str) -> None:
        super().__init__()
        for name, child in attention.named_children():
            self.add_module(name, child)
        self.last = last  # "": that layer lies outside
        self.layer_idx = getattr(attention, "layer_idx", None)
        self.train(attention.training)

    def forward(self, hidden_states: Tensor, *args: Any, past_key_values: Any = None, **kwargs: Any) -> tuple:
        nothing = hidden_states[..., :0]
        if past_key_values is not None:  # which counts tokens by what its first block holds
            mark = hidden_states[:, None, :, :1]
            past_key_values.update(mark, mark, self.layer_idx)
        return (self.get_submodule(self.last)(nothing) if self.last else nothing), None


# ---- what the config says


def tell(model: Model) -> None:
    """Let the config say the shape that the net has now: plainly where `transformers` can, else under `KEPT`."""
    net, now = model.net, bodies(model)
    groups, neurons = [b.groups for b in now], [count(net, b) for b in now]
    left: dict[str, list[int]] = {}
    for part, counts in (("groups", groups), ("neurons", neurons)):
        if _fits(net, part, {}):
            continue
        entries = _entries(net, part, counts[0], now[0]) if len(set(counts)) == 1 and counts[0] else {}
        if entries and _fits(net, part, entries):
            for name, value in entries.items():
                setattr(net.config, name, value)
        else:
            left[part] = counts
    if left:
        setattr(net.config, KEPT, left)
    elif hasattr(net.config, KEPT):
        delattr(net.config, KEPT)


def sayable(model: Model, part: str, kept: int) -> bool:
    """Whether plain `transformers` can load the model once every block keeps this many groups of heads, or neurons."""
    body, part = bodies(model)[0], "groups" if part == "heads" else part
    if not kept:
        return False
    entries = _entries(model.net, part, kept, body)
    try:
        config = _changed(model.net.config, entries)
        with torch.device("meta"):
            anew = type(model.net)(config)
        found = bodies(Model(anew, "encoder"))
    except Exception:
        return False
    width = body.heads // body.groups * body.width
    if part == "neurons":
        return all(count(anew, b) == kept for b in found)
    return all(
        (b.groups, b.width, weight_of(anew.get_submodule(b.heads_out)).shape[1]) == (kept, body.width, kept * width)
        for b in found
    )


def _entries(net: nn.Module, part: str, kept: int, body: Body) -> dict[str, int]:
    """What a config of this net would have to say of every block."""
    if part == "neurons":
        return {"intermediate_size" if hasattr(net.config, "intermediate_size") else "n_inner": kept}
    heads = kept * (body.heads // max(1, body.groups))
    pairs = {"num_key_value_heads": kept} if hasattr(net.config, "num_key_value_heads") else {}
    return {"num_attention_heads": heads, "head_dim": body.width, **pairs}


def _changed(config: Any, entries: dict[str, int]) -> Any:
    """A copy of the config with these entries, checked as one that is loaded would be."""
    config = copy.deepcopy(config)
    for name, value in entries.items():
        setattr(config, name, value)
    return type(config).from_dict(config.to_dict())


def _fits(net: nn.Module, part: str, entries: dict[str, int]) -> bool:
    """Whether the config with these entries describes this part of all blocks as they are."""
    try:
        with torch.device("meta"):
            anew = type(net)(_changed(net.config, entries))
        for mine in bodies(Model(net, "encoder")):
            paths = (*mine.heads_in, mine.heads_out) if part == "groups" else (*mine.neurons_in, mine.neurons_out)
            for path in paths:
                if net.get_submodule(path).weight.shape != anew.get_submodule(path).weight.shape:
                    return False
    except Exception:  # a config that says what cannot be: families refuse in ways of their own
        return False
    return True


def shaped(net: nn.Module) -> nn.Module:
    """A net just made of its config, cut to the numbers that the entry `KEPT` of the config holds."""
    kept = getattr(getattr(net, "config", None), KEPT, None)
    if not kept:
        return net
    for at, body in enumerate(bodies(Model(net, "encoder"))):
        if "groups" in kept:
            keep_heads(net, body, torch.arange(kept["groups"][at]))
        if "neurons" in kept:
            keep_neurons(net, body, torch.arange(kept["neurons"][at]))
    return net


def cutting(cls: type[nn.Module]) -> type[nn.Module]:
    """A class of `transformers` whose nets are `shaped` as they are made: `from_pretrained` finds its weights in place.

    The net it gives should be given its own class back: `net.__class__ = cls`.
    """

    def make(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        cls.__init__(self, config, *args, **kwargs)
        shaped(self)

    return type(cls.__name__, (cls,), {"__init__": make, "__module__": cls.__module__})


# ---- chains of plain layers

LAYERS = (nn.Linear, nn.Conv2d)
ALIKE = (
    nn.ReLU,
    nn.Dropout,
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
)
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


def chain(net: nn.Module, path: str = "") -> dict[str, nn.Module]:
    """The modules of a net that is one chain, in order, by path. Raises Bad where it is not."""
    if type(net) is nn.Sequential:
        found: dict[str, nn.Module] = {}
        for name, child in net.named_children():
            found |= chain(child, f"{path}.{name}" if path else name)
        return found
    if type(net) in (*LAYERS, *ALIKE, *POOLS) and not (
        isinstance(net, nn.Conv2d) and (net.groups != 1 or isinstance(net.padding, str))
    ):
        return {path: net}
    raise Bad(
        f"known are chains of Linear, Conv2d (whole, padded by numbers), ReLU, pools, Dropout and Flatten, not for "
        f"{type(net).__name__}{f' at {path}' if path else ''}: fold norms into the layers before them"
    )


@torch.no_grad()
def cut_units(modules: Sequence[nn.Module], kept: Sequence[Tensor]) -> None:
    """Keep these outputs of each layer but the last, bool (units,), and the inputs of the next layer that they are."""
    layers = [m for m in modules if isinstance(m, LAYERS)]
    for one, after, mask in zip(layers, layers[1:], kept, strict=False):
        spread = after.weight.shape[1] // len(mask)  # inputs that a unit gives: of flattened channels all places
        one.weight = nn.Parameter(one.weight.detach()[mask], one.weight.requires_grad)
        if one.bias is not None:
            one.bias = nn.Parameter(one.bias.detach()[mask], one.bias.requires_grad)
        inputs = mask.repeat_interleave(spread)
        after.weight = nn.Parameter(after.weight.detach()[:, inputs], after.weight.requires_grad)
        for layer in (one, after):
            out, into = layer.weight.shape[:2]
            if isinstance(layer, nn.Linear):
                layer.out_features, layer.in_features = out, into
            else:
                layer.out_channels, layer.in_channels = out, into
