"""The gradients of a batch's rows kept apart, and what is read of them: lengths, products with a direction, all of them.

A row's gradient of a linear layer that reads a_t and whose output has slope g_t at place t is sum_t g_t a_t^T. So all there
is to know are what layers read and the slopes of what they give ("factors"), from one forward and one backward in which no
gradient of a weight is made; lengths and products follow without it ("ghosts"):

    |gradient|^2           = sum_{t,s} <g_t, g_s> <a_t, a_s>
    <gradient, direction>  = sum_t <g_t, direction a_t>
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap

from trainlore import meter

__all__ = ["Factors", "Unfit", "by_backward", "captured", "cut", "dots", "entries", "owners_of", "squares", "uncounted", "vectorized", "whole", "write"]  # fmt: skip

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


def captured(losses: nn.Module, weights: Weights, owners: Owners, batch: dict[str, Tensor]) -> Parts:
    """From one forward and one backward of the batch. Raises Unfit where a layer does not keep the rows first."""
    rows = len(batch["row"])
    calls: list[tuple[nn.Module, tuple, dict, Tensor | None, int]] = []
    edges: list[Any] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if args and rows > 1 and args[0].shape[:1] == (1,):  # positions, shared by all rows until here
            return (args[0].expand(rows, *args[0].shape[1:]), *args[1:]), kwargs
        return None

    def after(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        read = args[0] if args else next(iter(kwargs.values()), None)
        if not (isinstance(out, Tensor) and isinstance(read, Tensor) and len(out) == len(read) == rows):
            raise Unfit(f"{type(module).__name__} does not keep the rows in its first dimension")
        calls.append((module, args, kwargs, out.detach() if _is_rms(module) else None, out._version))
        edges.append(torch.autograd.graph.get_gradient_edge(out))  # the value of now, whatever is written over it later

    hooks = [m.register_forward_hook(after, with_kwargs=True) for m in owners]
    hooks += [m.register_forward_pre_hook(before, with_kwargs=True) for m in owners if isinstance(m, nn.Embedding)]
    try:
        loss = losses(batch).sum()
    finally:
        for hook in hooks:
            hook.remove()
    if not edges:
        raise Unfit("no layer holds the weights")
    slopes = torch.autograd.grad(loss, edges, allow_unused=True)
    parts: Parts = {}
    with torch.no_grad():
        for (module, args, kwargs, out, version), slope in zip(calls, slopes, strict=True):
            if slope is not None:
                gave = out if out is not None and out._version == version else None  # not written over since
                for name, part in _parts_of(module, owners[module], args, kwargs, gave, slope, rows):
                    parts[name] = _joined(parts[name], part) if name in parts else part
        return {n: parts[n] if n in parts else w.new_zeros(rows, *w.shape) for n, w in weights.items()}


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
    return flat[:, 0] if flat.shape[1] == 1 else flat.sum(1)


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
        return part[0].numel()
    return (part[0].height or part[0].left.shape[2]) * part[0].right.shape[2]


def whole(part: Part) -> Tensor:
    """A part as each row's gradient (B, *shape)."""
    if isinstance(part, Tensor):
        return part
    total: Any = None
    for f in sorted(part, key=lambda f: f.height):  # embeddings last: they only add to some rows of the matrix
        if not f.height:
            made = f.left.mT @ f.right
            total = made if total is None else total.add_(made)
            continue
        rows, _, wide = f.right.shape
        total = f.right.new_zeros(rows, f.height, wide) if total is None else total
        at = f.left + torch.arange(rows, device=f.left.device)[:, None] * f.height
        total.view(rows * f.height, wide).index_add_(0, at.flatten(), f.right.flatten(0, 1))
    return total


def write(parts: Parts, out: Tensor) -> None:
    """All of it, flat, into `out` (B,P), in the order of the parts; no more than one part of a few rows is held beside it."""
    start = 0
    for name, part in parts.items():
        size = entries(part)
        step = max(1, PIECE // size)
        for at in range(0, len(out), step):
            rows = slice(at, at + step)
            out[rows, start : start + size] = whole(cut({name: part}, rows)[name]).flatten(1)
        start += size


def squares(parts: Parts) -> Tensor:
    """The squared length of each row's gradient (B,), from whatever is the smaller: the gradient or products of factors."""
    factors = [f for p in parts.values() if not isinstance(p, Tensor) for f in p]
    rows = len(next(iter(parts.values()))) if not factors else len(factors[0].right)
    places = max((f.right.shape[1] for f in factors), default=1)
    step = max(1, PIECE // places**2)
    if step < rows:
        return torch.cat([squares(cut(parts, slice(at, at + step))) for at in range(0, rows, step)])
    known: dict[Any, Tensor] = {}
    return torch.stack([_square(p, known) for p in parts.values()]).sum(0).clamp_(min=0)


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


def _square(part: Part, known: dict[Any, Tensor]) -> Tensor:
    if isinstance(part, Tensor):
        return _length(_wide(part)).square()
    if len(part) == 1 and not part[0].height:
        left, right = part[0].left, part[0].right
        places, high, wide = left.shape[1], left.shape[2], right.shape[2]
        if places == 1:
            return (_length(left) * _length(right)).square()
        if places * (high + wide) > high * wide:
            step = max(1, PIECE // (high * wide))
            pairs = zip(left.split(step), right.split(step), strict=True)
            return torch.cat([_length(a.mT @ b).square() for a, b in pairs])
    total: Any = 0
    for i, a in enumerate(part):
        total = total + _inner(a, a, known)
        for b in part[i + 1 :]:
            total = total + 2 * _inner(a, b, known)
    return total


def _length(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


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
