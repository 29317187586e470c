"""The gradients of a batch's rows kept apart, and what is read of them: lengths, products with a direction, all of them.

A row's gradient of a linear layer that reads a_t and whose output has slope g_t at place t is sum_t g_t a_t^T. So all there
is to know are what layers read and the slopes of what they give ("factors"), from one forward and one backward in which no
gradient of a weight is made; lengths and products follow without it ("ghosts"):

    |gradient|^2           = sum_{t,s} <g_t, g_s> <a_t, a_s>
    <gradient, direction>  = sum_t <g_t, direction a_t>
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.func import functional_call, grad, vjp, vmap

from trainlore import meter

__all__ = ["Factors", "Listener", "Unfit", "by_backward", "cut", "dots", "entries", "lengths", "uncounted", "vectorized", "whole", "write"]  # fmt: skip

PIECE = 2**22  # numbers of a product of factors made at once: what stays in the processor's caches


@dataclass
class Factors:
    """Each row's gradient of a matrix as sum over t of left_t right_t^T: left (B,T,m), or ids (B,T) of unit vectors
    of length `height`, as of an embedding; right (B,T,n)."""

    left: Tensor
    right: Tensor
    height: int = 0

    def __add__(self, other: Factors) -> Factors:
        return Factors(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1), self.height)

    def __getitem__(self, rows: slice) -> Factors:
        return Factors(self.left[rows], self.right[rows], self.height)


Part = Tensor | list[Factors]  # the rows' gradients of one weight: (B, *shape), or factors that add up to it
Parts = dict[str, Part]
Weights = dict[str, nn.Parameter]
Owners = dict[nn.Module, dict[str, str]]


class Unfit(RuntimeError):
    """This way of taking gradients does not suit the network; another may."""


@contextmanager
def uncounted() -> Iterator[None]:
    """What runs inside is not on the meter: as if inside another network, which pays."""
    meter._DEPTH[0] += 1
    try:
        yield
    finally:
        meter._DEPTH[0] -= 1


# ---- three ways to the parts


def owners_of(losses: nn.Module, weights: Weights) -> Owners:
    """The modules that hold these weights: what each calls them, and their names."""
    named = {id(w): n for n, w in weights.items()}
    held = {m: {k: named[id(p)] for k, p in m._parameters.items() if id(p) in named} for m in losses.modules()}
    return {m: own for m, own in held.items() if own}


class Listener:
    """Parts of one batch after another, each from one forward and one backward. It stays on the layers until `close`.

    It puts itself in the place of their `forward`: a call costs less than with hooks, and whatever hooks there are make of
    what a layer reads and gives, it sees what the layer itself read and gave.
    """

    def __init__(self, losses: nn.Module, weights: Weights) -> None:
        self.losses, self.weights, self.owners = losses, weights, owners_of(losses, weights)
        self.rows = 0  # of the batch that goes forward; 0: nothing is listened to
        self.before: dict[nn.Module, Any] = {}  # what stood there
        self.calls: list[tuple[nn.Module, tuple, dict, Tensor | None, int]] = []
        self.edges: list[GradientEdge] = []

    def __call__(self, batch: dict[str, Tensor]) -> Parts:
        """The parts of a batch. Raises Unfit where a layer does not keep the rows first."""
        if not self.before:
            self._open()
        self.rows = rows = len(batch["row"])
        try:
            loss = self.losses(batch).sum()
        finally:
            self.rows = 0
            calls, self.calls = self.calls, []
            edges, self.edges = self.edges, []
        if not edges:
            raise Unfit("no layer holds the weights")
        slopes = torch.autograd.grad(loss, edges, allow_unused=True)
        parts: Parts = {}
        with torch.no_grad():
            for (module, args, kwargs, out, version), slope in zip(calls, slopes, strict=True):
                if slope is not None:
                    gave = out if out is not None and out._version == version else None  # not written over since
                    for name, part in _parts_of(module, self.owners[module], args, kwargs, gave, slope, rows):
                        parts[name] = _joined(parts[name], part) if name in parts else part
            return {n: parts[n] if n in parts else w.new_zeros(rows, *w.shape) for n, w in self.weights.items()}

    def close(self) -> None:
        """Leave the layers as they were."""
        while self.before:
            module, forward = self.before.popitem()
            if forward is None:
                del module.__dict__["forward"]
            else:
                module.__dict__["forward"] = forward

    def _open(self) -> None:
        for module in self.owners:
            self.before[module] = module.__dict__.get("forward")
            module.__dict__["forward"] = partial(self._forward, module, module.forward)

    def _forward(self, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not self.rows:
            return forward(*args, **kwargs)
        if isinstance(module, nn.Embedding) and args and len(args[0]) == 1:  # positions, shared by all rows until here
            args = (args[0].expand(self.rows, *args[0].shape[1:]), *args[1:])
        out = forward(*args, **kwargs)
        read = args[0] if args else next(iter(kwargs.values()), None)
        kept = isinstance(out, Tensor) and isinstance(read, Tensor) and out.shape[:1] == read.shape[:1] == (self.rows,)
        if not kept or out.grad_fn is None:
            raise Unfit(f"{type(module).__name__} does not keep the rows in its first dimension, or no gradients")
        self.calls.append((module, args, kwargs, out.detach() if _is_rms(module) else None, out._version))
        self.edges.append(GradientEdge(out.grad_fn, out.output_nr))  # of now, whatever is written over it later
        return out


def vectorized(losses: nn.Module, weights: Weights, batch: dict[str, Tensor]) -> Parts:
    """By vmap over the rows: whole gradients."""

    def one(given: dict[str, Tensor], row: dict[str, Tensor]) -> Tensor:
        return functional_call(losses, given, ({k: v[None] for k, v in row.items()},))[0]

    plain = {n: w.detach() for n, w in weights.items()}
    return vmap(grad(one), in_dims=(None, 0), randomness="different")(plain, batch)


def by_backward(losses: nn.Module, weights: Weights, batch: dict[str, Tensor]) -> Parts:
    """Of a single row, by an ordinary backward."""
    slopes = torch.autograd.grad(losses(batch).sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
    return {n: g[None] for n, g in zip(weights, slopes, strict=True)}


def _parts_of(
    module: nn.Module, own: dict[str, str], args: tuple, kwargs: dict, gave: Tensor | None, slope: Tensor, rows: int
) -> Iterator[tuple[str, Part]]:
    read = (args[0] if args else next(iter(kwargs.values()))).detach()
    flat = _wide(slope).reshape(rows, -1, slope.shape[-1])
    kind = type(module)
    conv1d = kind.__name__ == "Conv1D"  # Hugging Face's linear layer with its weight the other way round
    if kind is nn.Linear or conv1d:
        seen = _wide(read).reshape(rows, -1, read.shape[-1])
        if "weight" in own:
            yield own["weight"], [Factors(seen, flat) if conv1d else Factors(flat, seen)]
        if "bias" in own:
            yield own["bias"], _added(flat)
    elif kind is nn.Embedding and not module.scale_grad_by_freq:
        ids = read.reshape(rows, -1)
        if module.padding_idx is not None:  # its vector is never trained
            flat = flat * (ids != module.padding_idx)[..., None]
        yield own["weight"], [Factors(ids, flat, module.num_embeddings)]
    elif kind is nn.LayerNorm and len(module.normalized_shape) == 1:
        if "weight" in own:
            plain = nn.functional.layer_norm(_wide(read), module.normalized_shape, eps=module.eps)
            yield own["weight"], _added(flat * plain.view_as(flat))
        if "bias" in own:
            yield own["bias"], _added(flat)
    elif _is_rms(module) and list(own) == list(module._parameters) == ["weight"]:
        yield own["weight"], _scaled(module, args, kwargs, gave, flat)
    else:
        yield from _locally(module, own, args, kwargs, slope, rows)


def _is_rms(module: nn.Module) -> bool:
    return type(module).__name__.endswith("RMSNorm")


def _scaled(module: nn.Module, args: tuple, kwargs: dict, gave: Tensor | None, flat: Tensor) -> Tensor:
    """The gradient (B,n) of the weight w of a norm that gives a + w * b, from what it gave: a is 0, or b if 1 is added to w."""

    def at(value: float, given: tuple) -> Tensor:
        return functional_call(module, {"weight": torch.full_like(module.weight, value)}, given, kwargs)

    one_row = (args[0][:1], *args[1:]) if args else args
    if gave is not None and module.weight.all() and not at(0.0, one_row).any():
        return _added(flat * _wide(gave).reshape(flat.shape)) / _wide(module.weight)
    return _added(flat * _wide(at(1.0, args) - at(0.0, args)).reshape(flat.shape))


def _wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _added(flat: Tensor) -> Tensor:
    """The sum over places (B,T,n) -> (B,n)."""
    return flat.select(1, 0) if flat.shape[1] == 1 else flat.sum(1)


def _locally(
    module: nn.Module, own: dict[str, str], args: tuple, kwargs: dict, slope: Tensor, rows: int
) -> Iterator[tuple[str, Tensor]]:
    """Any other layer: its own vector-Jacobian product, vectorized over the rows."""
    weights = {k: module._parameters[k].detach() for k in own}  # type: ignore[union-attr]
    given = {**dict(enumerate(args)), **kwargs}
    mapped = {k: v.detach() for k, v in given.items() if isinstance(v, Tensor) and v.dim() and len(v) == rows}

    def one(row: dict[Any, Tensor], g: Tensor) -> Any:
        now = {**given, **{k: v[None] for k, v in row.items()}}
        a, kw = tuple(now[i] for i in range(len(args))), {k: now[k] for k in kwargs}
        return vjp(lambda w: functional_call(module, w, a, kw), weights)[1](g[None])[0]

    with uncounted():
        for local, slopes in vmap(one)(mapped, slope).items():
            yield own[local], slopes


def _joined(old: Part, new: Part) -> Part:
    """A weight used twice: tensors add up; factors of one kind become a longer row, of two kinds stay two."""
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return whole(old) + whole(new)
    out = list(old)
    for f in new:
        i = next((i for i, o in enumerate(out) if o.height == f.height), None)
        if i is None:
            out.append(f)
        else:
            out[i] = out[i] + f
    return out


# ---- reading parts


def cut(parts: Parts, rows: slice) -> Parts:
    """The parts of these rows of the batch."""
    return {n: p[rows] if isinstance(p, Tensor) else [f[rows] for f in p] for n, p in parts.items()}


def entries(part: Part) -> int:
    """How many numbers a row's gradient of this weight has."""
    if isinstance(part, Tensor):
        return part.shape[1:].numel()
    return (part[0].height or part[0].left.shape[2]) * part[0].right.shape[2]


def whole(part: Part) -> Tensor:
    """A part as each row's gradient (B, *shape)."""
    if isinstance(part, Tensor):
        return part
    f = part[0]
    out = f.right.new_empty(len(f.right), f.height or f.left.shape[2], f.right.shape[2])
    _multiply(part, out)
    return out


def write(parts: Parts, out: Tensor) -> None:
    """All of it, flat, into `out` (B,P), in the order of the parts; at most a few rows of one part are held beside it."""
    sizes = [entries(part) for part in parts.values()]
    for part, size, here in zip(parts.values(), sizes, out.split(sizes, 1), strict=True):
        if isinstance(part, Tensor):
            here.copy_(part.flatten(1))
        elif (part[0].right.device, part[0].right.dtype) == (out.device, out.dtype):
            _multiply(part, here.view(len(out), -1, part[0].right.shape[2]))
        else:
            step = max(1, PIECE // size)
            for at in range(0, len(out), step):
                here[at : at + step] = whole([f[at : at + step] for f in part]).flatten(1)


def _multiply(part: list[Factors], out: Tensor) -> None:
    """Write the products of factors into `out` (B,m,n), whose rows may lie apart."""
    for i, f in enumerate(sorted(part, key=lambda f: f.height)):  # embeddings last: they only add to some lines
        if f.height:
            out = out if i else out.zero_()
            out.scatter_add_(1, f.left[..., None].expand_as(f.right), f.right)
        elif f.left.shape[1] == 1:
            torch.mul(f.left.mT, f.right, out=out)
        else:
            torch.bmm(f.left.mT, f.right, out=out)


def lengths(parts: Parts) -> Tensor:
    """The length of each row's gradient (B,), from whatever is the smaller: the gradient or products of factors."""
    factors = [f for p in parts.values() if not isinstance(p, Tensor) for f in p]
    rows = len(next(iter(parts.values()))) if not factors else len(factors[0].right)
    places = max((f.right.shape[1] for f in factors), default=1)
    step = max(1, PIECE // places**2)
    if step < rows:
        return torch.cat([lengths(cut(parts, slice(at, at + step))) for at in range(0, rows, step)])
    known: dict[Any, Tensor] = {}
    seen: dict[Any, tuple[Tensor, Tensor]] = {}
    return torch.linalg.vector_norm(torch.stack([_length_of(p, known, seen) for p in parts.values()]), dim=0)


def dots(parts: Parts, along: dict[str, Tensor]) -> Tensor:
    """The product of each row's gradient with a direction (B,), given by name of the weight in its shape."""
    found = []
    for name, part in parts.items():
        if isinstance(part, Tensor):
            found.append(_wide(part).flatten(1) @ along[name].flatten().to(_wide(part)))
        else:
            found += [_along(f, along[name].to(f.right)) for f in part]
    return torch.stack(found).sum(0)


def _along(f: Factors, direction: Tensor) -> Tensor:
    if f.height:
        one, two = direction[f.left], f.right
    elif direction.shape[0] > direction.shape[1]:  # the way that makes fewer numbers
        one, two = f.left @ direction, f.right
    else:
        one, two = f.right @ direction.mT, f.left
    return torch.linalg.vecdot(one.flatten(1), two.flatten(1))


def _length_of(part: Part, known: dict[Any, Tensor], seen: dict[Any, tuple[Tensor, Tensor]]) -> Tensor:
    if isinstance(part, Tensor):
        return _length(_wide(part)) if part.dim() != 2 else _length_once(_wide(part), seen)
    if len(part) == 1 and not part[0].height:
        left, right = part[0].left, part[0].right
        places, high, wide = left.shape[1], left.shape[2], right.shape[2]
        if places == 1:
            return _length_once(left.select(1, 0), seen) * _length_once(right.select(1, 0), seen)
        if places * (high + wide) > high * wide:
            step = max(1, PIECE // (high * wide))
            pairs = zip(left.split(step), right.split(step), strict=True)
            return torch.cat([_length(a.mT @ b) for a, b in pairs])
    total: Any = 0
    for i, a in enumerate(part):
        total = total + _inner(a, a, known)
        for b in part[i + 1 :]:
            total = total + 2 * _inner(a, b, known)
    return total.clamp_(min=0).sqrt_()


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def _length_once(x: Tensor, seen: dict[Any, tuple[Tensor, Tensor]]) -> Tensor:
    """The lengths (B,) of rows (B,n), taken once: a bias has the slopes of its weight. x is held, and with it its place."""
    key = x.data_ptr(), x.shape, x.stride()
    if key not in seen:
        seen[key] = x, torch.linalg.vector_norm(x, dim=1)
    return seen[key][1]


def _inner(a: Factors, b: Factors, known: dict[Any, Tensor]) -> Tensor:
    """The product of two factored gradients (B,)."""
    if a.height and b.height:
        left = (a.left[:, :, None] == b.left[:, None, :]).to(a.right.dtype)
    elif a.height:  # a unit vector picks an entry
        left = b.left.gather(2, a.left[:, None, :].expand(-1, b.left.shape[1], -1)).mT
    elif b.height:
        left = a.left.gather(2, b.left[:, None, :].expand(-1, a.left.shape[1], -1))
    else:
        left = a.left @ b.left.mT
    return (left * _products(a.right, b.right, known)).flatten(1).sum(1)


def _products(x: Tensor, y: Tensor, known: dict[Any, Tensor]) -> Tensor:
    """x y^T (B,T,S); the last ones are kept: layers that read one thing, as queries, keys and values do, share them."""
    key = tuple((v.data_ptr(), v.shape, v.stride()) for v in (x, y))
    if key not in known:
        known.clear()
        known[key] = x @ y.mT
    return known[key]
