"""Making a transformer really smaller: heads and neurons leave its blocks; shapes, modules and config follow.

Heads go by whole groups: a head of keys and values with all the queries it serves. What plain `transformers` can say of
the result, its config says: the number of neurons where all blocks keep as many, and the number of heads where the
family has a width of heads of its own (Llama and kin, for numbers that divide the hidden size; ViT). GPT-2 and BERT
divide the hidden size by the number of heads, and none of them lets blocks differ: that goes into one more entry of the
config, `KEPT`, which `shaped` reads.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model
from trainlore.primitives import reparam
from trainlore.primitives.anatomy import Body, bodies
from trainlore.primitives.calibrating import second_moments, seen, walk
from trainlore.primitives.grids import free
from trainlore.primitives.losses import aligned
from trainlore.primitives.masks import plain, weight_of, write
from trainlore.primitives.obs import Surgeon, damped
from trainlore.primitives.teaching import kl

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
            _keep_heads(model.net, body, _places(some, body.groups, f"groups of heads in {body.path}"))
        if few is not None:
            _keep_neurons(model.net, body, _places(few, count(model.net, body), f"neurons in {body.path}"))
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


def _keep_heads(net: nn.Module, body: Body, kept: Tensor) -> None:
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


def _keep_neurons(net: nn.Module, body: Body, kept: Tensor) -> None:
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
            _keep_heads(net, body, torch.arange(kept["groups"][at]))
        if "neurons" in kept:
            _keep_neurons(net, body, torch.arange(kept["neurons"][at]))
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


# ---- what a size costs


def timed(
    model: Model,
    body: Body,
    part: str,
    sizes: Sequence[int],
    batch: Batch,
    by: str = "seconds",
    repeats: int = 5,
) -> np.ndarray:
    """What a block's heads or neurons cost when that many groups or neurons are left: (sizes,), on this batch.

    by "seconds": measured here, the median of `repeats` passes; "work": floating-point operations, counted by shape.
    Of neurons their layers with a GELU between them are run, of heads the attention with all it does.
    """
    if by not in ("seconds", "work") or part not in PARTS:
        raise Bad(f"by={by!r} must be seconds or work, and the part ({part!r}) heads or neurons")
    path = _attention(body) if part == "heads" else body.neurons_in[0]
    args, kwargs = seen(model, path, batch)
    x = args[0] if args else kwargs["hidden_states"]
    if by == "work":
        return np.array([_work(model.net, body, part, size, x) for size in sizes])
    within = _within(body)
    found = []
    for size in sizes:
        block = copy.deepcopy(model.net.get_submodule(body.path)).eval()
        if part == "heads":
            _keep_heads(block, within, torch.arange(size))
            attention = block.get_submodule(_attention(within))
            found.append(_seconds(lambda a=attention: a(*args, **kwargs), x.device, repeats))
        else:
            _keep_neurons(block, within, torch.arange(size))
            found.append(_seconds(lambda b=block: _through(b, within, x), x.device, repeats))
    return np.array(found)


def _attention(body: Body) -> str:
    """The smallest module that holds all of a block's attention."""
    inside, outside = body.heads_in[0].split("."), body.heads_out.split(".")
    same = next(n for n, (a, b) in enumerate(zip(inside, outside, strict=False)) if a != b)
    return ".".join(inside[:same])


def _within(body: Body) -> Body:
    """The same body with its paths as seen from its block."""
    cut = len(body.path) + 1
    return replace(
        body,
        path="",
        heads_in=tuple(p[cut:] for p in body.heads_in),
        heads_out=body.heads_out[cut:],
        neurons_in=tuple(p[cut:] for p in body.neurons_in),
        neurons_out=body.neurons_out[cut:],
    )


def _through(block: nn.Module, body: Body, x: Tensor) -> Tensor:
    made = [block.get_submodule(path)(x) for path in body.neurons_in]
    return block.get_submodule(body.neurons_out)(F.gelu(made[0]) * made[1] if len(made) == 2 else F.gelu(made[0]))


@torch.no_grad()
def _seconds(run: Callable[[], Any], device: torch.device, repeats: int) -> float:
    taken = []
    for _ in range(repeats + 1):  # the first warms up
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return float(np.median(taken[1:]))


def _work(net: nn.Module, body: Body, part: str, size: int, x: Tensor) -> float:
    hidden = weight_of(net.get_submodule(body.heads_out)).shape[0]
    places = x.numel() // x.shape[-1]
    if part == "neurons":
        return 2.0 * places * hidden * size * (len(body.neurons_in) + 1)
    wide = size * (body.heads // max(1, body.groups)) * body.width
    return 2.0 * places * hidden * (2 * wide + 2 * size * body.width) + 4.0 * places * x.shape[-2] * wide


# ---- choosing sizes under a budget


def fit_budget(
    losses: Sequence[Sequence[float] | np.ndarray],
    times: Sequence[Sequence[float] | np.ndarray],
    budget: float,
    buckets: int = 10_000,
) -> list[int]:
    """One option a place, with the smallest sum of losses whose times add up to at most `budget`.

    Exact for times rounded to multiples of budget / buckets, by dynamic programming in O(buckets * all options); a choice
    that the rounding let slip over the budget is not taken. Of equal choices the quickest is.
    """
    if not budget > 0 or buckets < 1:
        raise Bad(f"the budget ({budget}) and its buckets ({buckets}) must be above 0")
    costs = [np.asarray(row, np.float64) for row in losses]
    spent = [np.asarray(row, np.float64) for row in times]
    steps = [np.rint(row * (buckets / budget)).astype(np.int64) for row in spent]
    best, picks = np.full(buckets + 1, np.inf), []
    best[0] = 0.0
    for row, step in zip(costs, steps, strict=True):
        now, pick = np.full(buckets + 1, np.inf), np.full(buckets + 1, -1)
        for option in np.argsort(step, kind="stable"):
            t = int(step[option])
            if t <= buckets:
                tried = np.concatenate([np.full(t, np.inf), best[: buckets + 1 - t] + row[option]])
                better = tried < now
                now[better], pick[better] = tried[better], option
        best = now
        picks.append(pick)
    limit = buckets
    while np.isfinite(best[: limit + 1]).any():
        at = limit = int(np.argmin(best[: limit + 1]))
        chosen: list[int] = []
        for pick, step in zip(reversed(picks), reversed(steps), strict=True):
            chosen.append(int(pick[at]))
            at -= int(step[chosen[-1]])
        chosen.reverse()
        if sum(row[one] for row, one in zip(spent, chosen, strict=True)) <= budget * (1 + 1e-9):
            return chosen
        limit -= 1
    least = sum(float(row.min()) for row in spent)
    raise Bad(f"nothing is that quick: the smallest sizes take {least:.4g}, and the budget is {budget:.4g}")


def weighted(judge: Callable[[np.ndarray], float], places: int, tries: int, rng: np.random.Generator) -> np.ndarray:
    """Weights (places,) with a low `judge(weights)`, as SPDY searches them.

    Ones or the best of `tries` random ones; then a tenth of them, and fewer, drawn anew for as long as one of the last
    `tries` was a gain.
    """
    best = np.ones(places)
    lowest = judge(best)
    for weights in rng.uniform(size=(tries, places)):
        if (loss := judge(weights)) < lowest:
            best, lowest = weights, loss
    for how_many in range(max(1, round(0.1 * places)), 0, -1):
        idle = 0
        while idle < tries:
            weights, idle = best.copy(), idle + 1
            weights[rng.integers(places, size=how_many)] = rng.uniform(size=how_many)
            if (loss := judge(weights)) < lowest:
                best, lowest, idle = weights, loss, 0
    return best


# ---- a database of sizes


@dataclass(frozen=True, eq=False)
class Level:
    """A layer at one size."""

    kept: Tensor
    """int64 (k,) the groups of its inputs that stay, ascending."""
    weight: Tensor
    """(out, k * inputs of a group), on the CPU."""
    error: float
    """|| (W' - W) X ||^2 / || W X ||^2 on the calibration rows."""


@dataclass(frozen=True, eq=False)
class Site:
    """The heads or the neurons of a block, with the layer that reads them at several sizes, the whole one first."""

    body: int
    part: str
    path: str
    groups: Tensor
    """int64 (groups, inputs of one)."""
    levels: tuple[Level, ...]


@torch.no_grad()
def database(
    model: Model, batches: list[Batch], sizes: Callable[[Body, str, int], Sequence[int]], damp: float = 0.01
) -> list[Site]:
    """Every block's heads and neurons at the sizes that `sizes(body, part, how many there are)` asks for.

    Groups are taken out one at a time, the one that costs least first, and what reads the others makes up for it
    (`Surgeon`). Calibrated on the net as it is, which is not changed. A part that is gone already is left out.
    """
    ready(model)
    found = bodies(model)
    wanted = {b.heads_out: (at, "heads") for at, b in enumerate(found) if b.groups}
    wanted |= {b.neurons_out: (at, "neurons") for at, b in enumerate(found) if count(model.net, b)}
    layers = {path: model.net.get_submodule(path) for path in wanted}
    sites = {}
    for unit in walk(model, layers, batches):
        for path, moments in second_moments(unit).items():
            at, part = wanted[path]
            groups = columns(model.net, found[at], part)
            asked = sizes(found[at], part, len(groups))
            sites[path] = Site(at, part, path, groups, _levels(weight_of(layers[path]), moments, groups, asked, damp))
    return sorted(sites.values(), key=lambda s: (s.body, s.part))


def _levels(weight: Tensor, moments: Tensor, groups: Tensor, sizes: Sequence[int], damp: float) -> tuple[Level, ...]:
    h, dead = damped(moments, damp)
    total = float(((weight.float().masked_fill(dead, 0.0) @ h) * weight.float()).sum())
    found = [Level(torch.arange(len(groups)), weight.clone().cpu(), 0.0)]
    try:
        surgeon = Surgeon(weight.float().masked_fill(dead, 0.0), h, groups.to(weight.device))
        for size in sorted({int(s) for s in sizes if 0 <= s < len(groups)}, reverse=True):
            while int(surgeon.left.sum()) > size:
                surgeon.take(int(_costs(surgeon).argmin()))
            kept = surgeon.left.nonzero().flatten().cpu()
            left = surgeon.weight[:, groups[kept].flatten().to(weight.device)].to(weight.dtype).cpu()
            error = max(0.0, surgeon.error) / total if total > 0 else 0.0
            found.append(Level(kept, left, min(1.0, error) if size else 1.0))
    except torch.linalg.LinAlgError:
        raise Bad(f"damp={damp} is too small for these calibration rows: raise it, or give more rows") from None
    return tuple(found)


def _costs(surgeon: Surgeon) -> Tensor:
    """What `Surgeon.costs` says; groups of one input need no systems of equations, which is ten times faster."""
    if surgeon.groups.shape[1] > 1:
        return surgeon.costs()
    at = surgeon.groups[:, 0]
    least = surgeon.inverse.diagonal()[at].clamp(min=torch.finfo(torch.float32).tiny)
    return (surgeon.weight[:, at].square().sum(0) / least).masked_fill(~surgeon.left, torch.inf)


@torch.no_grad()
def put(net: nn.Module, site: Site, level: int) -> None:
    """Write a level into its layer in full width, zeros where groups are gone: what it computes when it is cut."""
    layer, one = net.get_submodule(site.path), site.levels[level]
    whole = torch.zeros_like(weight_of(layer))
    whole[:, site.groups[one.kept].flatten().to(whole.device)] = one.weight.to(whole)
    write(layer, whole)


def cut_to(model: Model, sites: Sequence[Site], levels: Sequence[int], told: bool = True) -> Model:
    """The model with every site at its level, heads and neurons that are gone taken out of all layers."""
    blocks = len(bodies(model))
    kept: dict[str, list[list[int] | None]] = {part: [None] * blocks for part in PARTS}
    for site, level in zip(sites, levels, strict=True):
        put(model.net, site, level)
        kept[site.part][site.body] = site.levels[level].kept.tolist()
    return shrink(model, kept["heads"], kept["neurons"], told)


# ---- how far a model has strayed


@torch.no_grad()
def answers(model: Model, batches: Sequence[Batch]) -> list[Tensor]:
    """What the model says of each batch: logits (B,K) or (B,T,V) that `strayed` compares with."""
    was = model.net.training
    model.net.eval()
    found = [aligned(model.kind, model(batch)).float() for batch in batches]
    model.net.train(was)
    return found


def strayed(model: Model, batches: Sequence[Batch], before: Sequence[Tensor]) -> float:
    """Mean over rows or real tokens of KL(before || now) in nats; of a model that names nothing, squared distance."""
    total, places = 0.0, 0.0
    for batch, theirs, mine in zip(batches, before, answers(model, batches), strict=True):
        if model.kind in ("encoder", "regressor", "denoiser"):
            gap = (mine - theirs).square().flatten(1).mean(1)
        else:
            gap = kl(mine, theirs)
        real = torch.ones_like(gap)
        if gap.dim() == 2 and "attention_mask" in batch:
            real = batch["attention_mask"][:, -gap.shape[1] :].to(gap)  # of a causal model: where a next token is
        total += float((gap * real).sum())
        places += float(real.sum())
    return total / max(1.0, places)
