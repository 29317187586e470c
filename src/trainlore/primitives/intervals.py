"""Interval bounds: the box in which a network's outputs lie while its input lies in one, and what was met on the way.

A box goes through the network as if it were a batch of rows; an operation whose bounds are not known is an error.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Model

AFFINE = {f.__name__: f for f in (F.linear, F.conv1d, F.conv2d, F.conv3d)}
SHAPED = "flatten reshape view unflatten permute transpose contiguous squeeze unsqueeze pad cat __getitem__ float to"  # moved about
ASKED = "__get__ __len__ dim size numel is_floating_point register_hook __repr__"  # looked at
RISING = """add __add__ __radd__ add_ relu leaky_relu elu selu sigmoid tanh softplus hardtanh relu6 mean sum amax
max_pool1d max_pool2d max_pool3d boolean_dispatch avg_pool1d avg_pool2d avg_pool3d
adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d"""
MONOTONE = {*SHAPED.split(), *ASKED.split(), *RISING.split()}


class Box(Tensor):
    """The ends of intervals, stacked along the rows: all the lower ones, all the upper ones, then (with `clean`) the points
    inside, from which batch norm takes its statistics. A network that is called with it answers with the box its
    outputs lie in; an operation whose bounds are not known here is an error, never a guess."""

    tape: dict[str, Any]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", str(func))
        box = next(a for a in _flat(args) + list(kwargs.values()) if isinstance(a, Box))
        tape = box.tape
        if name in AFFINE:
            out = _affine(AFFINE[name], tape, *args, **kwargs)
        elif name == "batch_norm":
            out = _batch_norm(tape, *args, **kwargs)
        elif name == "dropout":
            out = _plain(box)  # what is certified is the network without dropout
        elif name == "relu":
            tape["relus"].append(_plain(box).chunk(tape["parts"])[:2])
            out = F.relu(_plain(box))
        elif name in MONOTONE and kwargs.get("alpha", 1) >= 0:
            out = super().__torch_function__(func, types, args, kwargs)
        else:
            raise Bad(
                f"interval arithmetic knows no bounds of {name}: use layers that are affine or monotone, batch norm and sums"
            )
        if not isinstance(out, Tensor):
            return out
        out = _plain(out)
        if not out.dim() or len(out) != len(_plain(box)):
            raise Bad(f"{name} mixes rows, and bounds need them apart")
        out = out.as_subclass(Box)
        out.tape = tape
        sums = name.strip("_") in ("add", "radd") and sum(isinstance(a, Box) for a in args) > 1
        out.since_sum = 0 if sums else getattr(box, "since_sum", math.inf) + 1  # type: ignore[attr-defined]
        if name == "linear":
            tape["last"] = (out, _plain(box), *_weights(*args, **kwargs))
        return out


def _flat(args: Any) -> list[Any]:
    return [b for a in args for b in (a if isinstance(a, list | tuple) else (a,))]


def _plain(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor)


def _weights(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
) -> tuple[Tensor, Tensor | None]:
    return weight, bias


def _affine(
    op: Any, tape: dict[str, Any], input: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **more: Any
) -> Tensor:
    low, high, *clean = _plain(input).chunk(tape["parts"])
    middle, radius = (
        op((low + high) / 2, weight, bias, *rest, **more),
        op((high - low) / 2, weight.abs(), None, *rest, **more),
    )
    if getattr(input, "since_sum", math.inf) <= 1:
        tape["after_sums"].append(weight)
    return torch.cat([middle - radius, middle + radius, *(op(x, weight, bias, *rest, **more) for x in clean)])


def _batch_norm(tape, input, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
    low, high, *clean = _plain(input).chunk(tape["parts"])
    if mean is None or id(mean) in tape["batch_norms"]:
        axes = [0, *range(2, low.dim())]
        mean, var = clean[0].mean(axes), clean[0].var(axes, unbiased=False)
    scale = (1 if weight is None else weight) / torch.sqrt(var + eps)
    shift, shape = (0 if bias is None else bias) - mean * scale, (1, -1, *[1] * (low.dim() - 2))
    scale, shift = scale.view(shape), shift.view(shape)
    middle, radius = (low + high) / 2 * scale + shift, (high - low) / 2 * scale.abs()
    return torch.cat([middle - radius, middle + radius, *(x * scale + shift for x in clean)])


def bounds(model: Model, x: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Where the logits can lie while the input lies in [low, high], and the tape of the pass.

    x (inside, for batch norm in training), low, high: (B, ...). Returns lower and upper logits (B, K)."""
    every = [m for m in model.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    norms = [m for m in every if m.training or m.running_mean is None]
    parts = [low, high, x] if norms else [low, high]
    box = torch.cat(parts).as_subclass(Box)
    means = {id(m.running_mean) for m in norms}
    box.tape = {"parts": len(parts), "batch_norms": means, "relus": [], "after_sums": [], "last": None}
    was = [m.training for m in norms]
    for m in norms:
        m.eval()  # so that this pass leaves no trace in the running statistics
    try:
        with torch.compiler.set_stance("force_eager"):  # a box is no tensor that a compiled block could trace
            out = model({model.input: box})
    finally:
        for m, training in zip(norms, was, strict=True):
            m.train(training)
    lower, upper = _plain(out).chunk(len(parts))[:2]
    last = box.tape["last"] if box.tape["last"] and box.tape["last"][0] is out else None
    return lower, upper, {**box.tape, "last": last, "radius": ((high - low) / 2).mean()}


def margins(model: Model, batch: dict[str, Tensor], eps: float, low: float | None = None, high: float | None = None):
    """Lower bounds of z_y - z_j for every class j while no input feature moves by more than eps: (B, K), 0 at y; and the tape.

    A row is certified when all of its other margins are above 0. `low`, `high`: the range of the features, if they have one.
    The last linear layer is taken together with the difference, which is tighter than the difference of its bounds."""
    x, y = batch[model.input], batch["labels"]
    least = x - eps if low is None else (x - eps).clamp(min=low)
    most = x + eps if high is None else (x + eps).clamp(max=high)
    lower, upper, tape = bounds(model, x, least, most)
    mine = F.one_hot(y, lower.shape[-1]).bool()
    if tape["last"] is None:
        worst = lower.gather(1, y[:, None]) - upper
    else:
        _, box, weight, bias = tape["last"]
        below, above = box.chunk(tape["parts"])[:2]
        apart = weight[y][:, None] - weight  # (B, K, D)
        worst = torch.einsum("bkd,bd->bk", apart, (below + above) / 2)
        worst = worst - torch.einsum("bkd,bd->bk", apart.abs(), (above - below) / 2)
        worst = worst if bias is None else worst + bias[y][:, None] - bias
    return worst.masked_fill(mine, 0.0), tape
