"""Gradients of each row's loss, the rows kept apart: whole or projected, their lengths, their products with a direction.

`row_norms` holds no gradient. Of a linear layer that reads a_t and whose output has slope g_t at place t, a row's
gradient is sum_t g_t a_t^T, so its squared length is sum_{t,s} <g_t, g_s> <a_t, a_s>: one forward and one backward of the
whole batch, and two small products ("ghost norms"). Everything here runs in evaluation mode and is on the run's meter.
A flat gradient has the order of `net.named_parameters()`, trained weights only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from trainlore import meter
from trainlore.errors import Bad
from trainlore.primitives.losses import per_row, rowwise

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model
    from trainlore.runs import Run

__all__ = [
    "flat_weights",
    "gradient_sum",
    "input_slopes",
    "put_weights",
    "row_dots",
    "row_gradients",
    "row_norms",
    "slope_spread",
    "spread",
]

ROOM = 2**28  # bytes of gradients or of a projection held at once
BATCH = 64  # rows that go through the network together when no gradient is held
Batch = dict[str, Tensor]


def row_gradients(
    run: Run,
    model: Model,
    data: Data,
    project: int | None = None,
    layers: str | Sequence[str] | None = None,
    chunk: int = 0,
    how: Literal["rademacher", "gaussian"] = "rademacher",
) -> Tensor:
    """The gradient of each row's loss by the trained weights, float32 (N, P) on the CPU.

    `project`: that many numbers a row instead of P, by a random matrix S with E ||S g||^2 = ||g||^2 (entries +-1 or
    Gaussian, over sqrt(project)). S is named by the run's seed and the weights, so two calls on one model share it.
    `layers`: only weights whose name contains one of these. `chunk`: rows whose gradients are held at once; 0: what fits
    into 256 MiB.
    """
    if project is not None and project < 1:
        raise Bad(f"project={project} must be a number of dimensions above 0, or None for the whole gradient")
    if how not in ("rademacher", "gaussian"):
        raise Bad(f"how={how!r} must be rademacher or gaussian")
    signs = None if project is None else _Projection(run, project, how)

    def read(parts: dict[str, Any]) -> Tensor:
        if signs is None:
            return _flat(parts)
        return signs(parts)

    return _each(run, model, data, chunk, layers, read, holds=True)


def row_norms(run: Run, model: Model, data: Data, layers: str | Sequence[str] | None = None, chunk: int = 0) -> Tensor:
    """The length of each row's gradient, float32 (N,) on the CPU, exactly and without holding the gradients.

    `chunk`: rows that go through the network together (0: 64); 1: an ordinary backward for each row, which every network
    can do.
    """

    def read(parts: dict[str, Any]) -> Tensor:
        return torch.stack([_squares(p) for p in parts.values()]).sum(0).clamp(min=0)

    return _each(run, model, data, chunk, layers, read, holds=False).sqrt().float()


def row_dots(
    run: Run, model: Model, data: Data, direction: Tensor, layers: str | Sequence[str] | None = None, chunk: int = 0
) -> Tensor:
    """The product of each row's gradient with a flat direction (P,), float32 (N,) on the CPU.

    It is how fast the row's loss rises when the weights move that way: one forward-mode pass a batch, no gradient held.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    losses, weights, data = _ready(model, data, layers)
    sizes = [w.numel() for w in weights.values()]
    if direction.shape != (sum(sizes),):
        raise Bad(f"direction has shape {tuple(direction.shape)}; these weights are {sum(sizes)} numbers, flat")
    pieces = direction.to(model.device).split(sizes)
    along = {n: p.view(w.shape).to(w.dtype) for (n, w), p in zip(weights.items(), pieces, strict=True)}
    base = {n: w.detach() for n, w in weights.items()}

    def one(batch: Batch, price: _Price) -> Tensor:
        with price.of(batch), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no forward mode
            return jvp(lambda w: functional_call(losses, w, (batch,)), (base,), (along,))[1].float()

    try:
        return _pass(run, model, data, losses, chunk or BATCH, one)
    except RuntimeError:  # an operation without a forward mode: the gradients themselves
        flat = direction.detach().float()
        read = _each(run, model, data, chunk, layers, lambda parts: _flat(parts).cpu() @ flat.cpu(), holds=True)
        return read


def gradient_sum(
    run: Run, model: Model, data: Data, weights: Tensor | None = None, layers: str | Sequence[str] | None = None
) -> Tensor:
    """The weighted sum of the rows' gradients (P,), float32 on the CPU: one ordinary backward a batch.

    `weights` (N,): how much each row counts, 1 without.
    """
    losses, trained, data = _ready(model, data, layers)
    share = torch.ones(len(data)) if weights is None else torch.as_tensor(weights).float()
    if share.shape != (len(data),):
        raise Bad(f"weights have shape {tuple(share.shape)} for {len(data)} rows")
    total = torch.zeros(sum(w.numel() for w in trained.values()))

    def one(batch: Batch, price: _Price) -> Tensor:
        row_losses = losses(batch)
        loss = (row_losses * share[batch["row"].cpu()].to(row_losses)).sum()
        slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        total.add_(torch.cat([g.flatten().float() for g in slopes]).cpu())
        return row_losses.detach()

    _pass(run, model, data, losses, BATCH, one)
    return total


def flat_weights(model: Model) -> Tensor:
    """The trained weights, float32 (P,) on the CPU."""
    return torch.cat([p.detach().float().flatten().cpu() for p in model.net.parameters() if p.requires_grad])


@torch.no_grad()
def put_weights(model: Model, weights: Tensor) -> None:
    """Write trained weights (P,), as `flat_weights` gives them, into the model."""
    trained = [p for p in model.net.parameters() if p.requires_grad]
    for p, w in zip(trained, weights.split([p.numel() for p in trained]), strict=True):
        p.copy_(w.view_as(p))


def input_slopes(model: Model, batch: Batch) -> Tensor:
    """The gradient of each row's true logit by what a classifier reads, (B, D): a number a token, pixel or feature.

    Of tokens it is by their embeddings, mean over dimensions; of pixels the mean over channels. Evaluation mode is yours
    to set."""
    kept: list[Tensor] = []

    def hold(module: Any, args: Any, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0]

    if model.input == "input_ids":
        hook = model.net.get_input_embeddings().register_forward_hook(hold)  # type: ignore[operator]
        try:
            out = model(batch)
        finally:
            hook.remove()
    else:
        out = model({**batch, model.input: hold(None, None, batch[model.input])})
    slope = torch.autograd.grad(out.gather(1, batch["labels"][:, None]).sum(), kept[0])[0]
    if model.input == "input_ids":
        return slope.mean(-1)
    return (slope.mean(1) if slope.dim() == 4 else slope).flatten(1)


def spread(slopes: Tensor, counted: Tensor) -> Tensor:
    """How much each row's input gradient varies between checkpoints, (B,): slopes (K, B, D), counted bool (B, D).

    The standard deviation over the K checkpoints at each input, averaged over the inputs that count.
    """
    deviation = slopes.std(0, correction=0) * counted
    return deviation.sum(1) / counted.sum(1).clamp(min=1)


def slope_spread(run: Run, model: Model, data: Data, snapshots: Sequence[dict[str, Tensor]]) -> Tensor:
    """The `spread` of each row's `input_slopes` over state dicts of the model, (N,) on the CPU; the last one stays in it."""
    found = []
    model.net.eval()
    with run.meter.running():
        for at in range(0, len(data), BATCH):
            batch = data.batch(np.arange(at, min(at + BATCH, len(data))), model)
            batch, slopes = {k: v.to(model.device) for k, v in batch.items()}, []
            for weights in snapshots:
                model.net.load_state_dict(weights)
                slopes.append(input_slopes(model, batch))
            counted = batch.get("attention_mask", torch.ones_like(slopes[0])).bool()
            found.append(spread(torch.stack(slopes), counted).cpu())
    return torch.cat(found)


# ---- one pass over the rows


class Losses(nn.Module):
    """A model with its loss as one module: batch -> the loss of each row (B,). Functional calls may exchange its weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.model = model.net, model

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of each row over its targets, (B,)."""
        return per_row(rowwise(self.model.kind, batch, self.model(batch)), batch, self.model.kind)


class Unfit(RuntimeError):
    """This way of taking gradients does not suit the network; another may."""


def _ready(
    model: Model, data: Data, layers: str | Sequence[str] | None
) -> tuple[nn.Module, dict[str, nn.Parameter], Data]:
    """The losses, the weights asked for by their names in them, and the data with token columns if need be."""
    data.need(who="taking gradients")
    if model.input == "input_ids" and "input_ids" not in data.columns:
        data = model.encode(data, truncate=True)
    losses = Losses(model)
    trained = {n: p for n, p in losses.named_parameters() if p.requires_grad}
    parts = (layers,) if isinstance(layers, str) else layers
    weights = {n: p for n, p in trained.items() if parts is None or any(x in n.removeprefix("net.") for x in parts)}
    if not weights:
        have = ", ".join(n.removeprefix("net.") for n in list(trained)[:8])
        raise Bad(f"layers={layers!r} names no trained weight; there are {have or 'none'}")
    return losses, weights, data


def _each(
    run: Run, model: Model, data: Data, chunk: int, layers: Any, read: Callable[[dict[str, Any]], Tensor], holds: bool
) -> Tensor:
    """`read` of the parts of each batch's gradients, over all rows, by the fastest way that suits the network."""
    if chunk < 0:
        raise Bad(f"chunk={chunk} must be 0 (as many rows as fit) or a number of rows")
    losses, weights, data = _ready(model, data, layers)
    owners = _owners(losses, weights)
    fit = min(256, max(1, ROOM // (4 * sum(w.numel() for w in weights.values()))))

    def captured(batch: Batch, price: _Price) -> Tensor:
        if len(batch["row"]) == 1:
            return single(batch, price)
        found = read(_captured(losses, weights, owners, batch))
        if batch["row"][0] == first:  # are the rows apart, and is every use of a weight seen?
            true = read(_by_backward(losses, weights, {k: v[:1] for k, v in batch.items()}))
            if not (found[:1] - true).norm() <= 1e-3 * true.norm() + 1e-12:
                raise Unfit("rows of a batch do not stay apart in this network")
        return found

    def mapped(batch: Batch, price: _Price) -> Tensor:
        with price.of(batch):
            return read(_vectorized(losses, weights, batch))

    def single(batch: Batch, price: _Price) -> Tensor:
        return read(_by_backward(losses, weights, batch))

    first = int(_by_length(data)[0])
    ways: list[tuple[Callable[[Batch, _Price], Tensor], int]] = [(single, 1)]
    if chunk != 1:
        ways = [(captured, chunk or (min(BATCH, fit) if holds else BATCH)), (mapped, chunk or fit)]
        ways += [] if chunk else [(single, 1)]
    for way, size in ways:
        try:
            return _pass(run, model, data, losses, size, way)
        except RuntimeError as error:
            last = error
    raise Bad(f"{model!r} cannot be vectorized over rows ({last}): give chunk=1") from last


def _pass(
    run: Run, model: Model, data: Data, losses: nn.Module, size: int, one: Callable[[Batch, _Price], Tensor]
) -> Tensor:
    """`one` of every batch of `size` rows, long rows first, back in the order of the rows: (N, ...) on the CPU."""
    order, was, price = _by_length(data), model.net.training, _Price(losses)
    found: Tensor | None = None
    model.net.eval()
    try:
        with run.meter.running():
            for at in range(0, len(order), size):
                batch = {k: v.to(model.device) for k, v in data.batch(order[at : at + size], model).items()}
                if (
                    model.kind == "causal"
                ):  # padding is on the right, where no label looks; a mask costs the fast kernels
                    batch.pop("attention_mask", None)
                values = one(batch, price).detach().cpu()
                if found is None:
                    found = values.new_empty(len(order), *values.shape[1:])
                found[order[at : at + size]] = values
    finally:
        model.net.train(was)
    return found  # type: ignore[return-value]


def _by_length(data: Data) -> np.ndarray:
    if "input_ids" not in data.columns:
        return np.arange(len(data))
    return np.argsort(-np.diff(data.lists("input_ids")[1]), kind="stable")


class _Price:
    """Passes under a transform cannot be counted from inside: a plain pass of one row gives the price of each."""

    def __init__(self, losses: nn.Module) -> None:
        self.losses = losses
        self.known: dict[Any, tuple[float, int]] = {}

    @contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Pay for a forward and a backward of this batch; the network counts nothing inside."""
        rows = len(batch["row"])
        shape = tuple(v.shape[1:] for v in batch.values())
        bills = list({id(m): m for m in meter._RUNNING}.values())
        if shape not in self.known:
            before = bills[0].forward, bills[0].tokens
            with torch.no_grad():
                self.losses({k: v[:1] for k, v in batch.items()})
            self.known[shape] = bills[0].forward - before[0], bills[0].tokens - before[1]
        work, tokens = self.known[shape]
        share = 1 + getattr(self.losses.net, "_trained", 1.0)
        for bill in bills:
            bill.forward += work * rows
            bill.backward += work * rows * share
            bill.rows += rows
            bill.tokens += tokens * rows
        with _uncounted():
            yield


@contextmanager
def _uncounted() -> Iterator[None]:
    meter._DEPTH[0] += 1  # as if inside another network, which pays
    try:
        yield
    finally:
        meter._DEPTH[0] -= 1


# ---- three ways to the parts of a batch's gradients, by name of the weight


@dataclass
class Factors:
    """Each row's gradient of a matrix as sum over t of left_t right_t^T: left (B,T,m), or ids (B,T) of unit vectors
    of length `height`, as of an embedding; right (B,T,n)."""

    left: Tensor
    right: Tensor
    height: int = 0

    def __add__(self, other: Factors) -> Factors:
        return Factors(torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1), self.height)


Weights = dict[str, nn.Parameter]


def _owners(losses: nn.Module, weights: Weights) -> dict[nn.Module, dict[str, str]]:
    """The modules that hold weights asked for: what each calls them, and their names."""
    named = {id(w): n for n, w in weights.items()}
    held = {m: {k: named[id(p)] for k, p in m._parameters.items() if id(p) in named} for m in losses.modules()}
    return {m: own for m, own in held.items() if own}


def _captured(
    losses: nn.Module, weights: Weights, owners: dict[nn.Module, dict[str, str]], batch: Batch
) -> dict[str, Any]:
    """Parts from one forward and one backward of the batch: what layers read, and the slopes of what they gave.

    A part is a list of Factors or a tensor (B, *shape of the weight).
    """
    rows = len(batch["row"])
    calls: list[tuple[nn.Module, tuple, dict]] = []
    edges: list[Any] = []

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if args and rows > 1 and args[0].shape[:1] == (1,):  # positions, shared by all rows until here
            return (args[0].expand(rows, *args[0].shape[1:]), *args[1:]), kwargs
        return None

    def after(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        read = args[0] if args else next(iter(kwargs.values()), None)
        if not (isinstance(out, Tensor) and isinstance(read, Tensor) and len(out) == len(read) == rows):
            raise Unfit(f"{type(module).__name__} does not keep the rows in its first dimension")
        calls.append((module, args, kwargs))
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
    parts: dict[str, Any] = {}
    for (module, args, kwargs), slope in zip(calls, slopes, strict=True):
        if slope is not None:
            for name, part in _parts_of(module, owners[module], args, kwargs, slope.detach(), rows):
                parts[name] = _joined(parts.get(name), part)
    return {n: parts[n] if n in parts else w.new_zeros(rows, *w.shape) for n, w in weights.items()}


def _parts_of(
    module: nn.Module, own: dict[str, str], args: tuple, kwargs: dict, slope: Tensor, rows: int
) -> Iterator[tuple[str, Any]]:
    read = (args[0] if args else next(iter(kwargs.values()))).detach()
    wide = torch.promote_types(slope.dtype, torch.float32)
    flat = slope.reshape(rows, -1, slope.shape[-1]).to(wide)
    conv1d = type(module).__name__ == "Conv1D"  # Hugging Face's linear layer with its weight the other way round
    if type(module) is nn.Linear or conv1d:
        seen = read.reshape(rows, -1, read.shape[-1]).to(wide)
        if "weight" in own:
            yield own["weight"], [Factors(seen, flat) if conv1d else Factors(flat, seen)]
        if "bias" in own:
            yield own["bias"], flat.sum(1)
    elif type(module) is nn.Embedding and not module.scale_grad_by_freq:
        ids = read.reshape(rows, -1)
        if module.padding_idx is not None:  # its vector is never trained
            flat = flat * (ids != module.padding_idx)[..., None]
        yield own["weight"], [Factors(ids, flat, module.num_embeddings)]
    else:
        yield from _locally(module, own, args, kwargs, slope, rows)


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

    with _uncounted():
        for local, slopes in vmap(one)(mapped, slope).items():
            yield own[local], slopes


def _joined(old: Any, new: Any) -> Any:
    """A weight used twice: tensors add up; factors of one kind become a longer row, of two kinds stay two."""
    if old is None:
        return new
    if isinstance(old, Tensor) or isinstance(new, Tensor):
        return _whole(old) + _whole(new)
    out = list(old)
    for f in new:
        i = next((i for i, o in enumerate(out) if o.height == f.height), None)
        if i is None:
            out.append(f)
        else:
            out[i] = out[i] + f
    return out


def _vectorized(losses: nn.Module, weights: Weights, batch: Batch) -> dict[str, Tensor]:
    """Parts by vmap over the rows."""

    def one(given: dict[str, Tensor], row: Batch) -> Tensor:
        return functional_call(losses, given, ({k: v[None] for k, v in row.items()},))[0]

    plain = {n: w.detach() for n, w in weights.items()}
    return vmap(grad(one), in_dims=(None, 0), randomness="different")(plain, batch)


def _by_backward(losses: nn.Module, weights: Weights, batch: Batch) -> dict[str, Tensor]:
    """Parts of a single row by an ordinary backward."""
    slopes = torch.autograd.grad(losses(batch).sum(), list(weights.values()), allow_unused=True, materialize_grads=True)
    return {n: g[None] for n, g in zip(weights, slopes, strict=True)}


# ---- reading parts


def _whole(part: Any) -> Tensor:
    """A part as each row's gradient (B, *shape)."""
    if isinstance(part, Tensor):
        return part
    total = None
    for f in part:
        if f.height:
            rows, _, width = f.right.shape
            at = f.left + torch.arange(rows, device=f.left.device)[:, None] * f.height
            g = f.right.new_zeros(rows * f.height, width).index_add_(0, at.flatten(), f.right.flatten(0, 1))
            g = g.view(rows, f.height, width)
        else:
            g = f.left.mT @ f.right
        total = g if total is None else total + g
    return total  # type: ignore[return-value]


def _flat(parts: dict[str, Any]) -> Tensor:
    return torch.cat([_whole(p).flatten(1).float() for p in parts.values()], 1)


def _squares(part: Any) -> Tensor:
    """The squared length of a part (B,): from the gradient where that is the smaller thing, else from its factors."""
    if isinstance(part, Tensor):
        return part.flatten(1).to(torch.promote_types(part.dtype, torch.float32)).square().sum(1)
    (places, high), wide = part[0].left.shape[1:3] if not part[0].height else (0, 0), part[0].right.shape[-1]
    if len(part) == 1 and not part[0].height and places > 1 and places * (high + wide) >= high * wide:
        return _whole(part).square().sum((1, 2))
    return torch.stack([_inner(a, b) for a in part for b in part]).sum(0)


def _inner(a: Factors, b: Factors) -> Tensor:
    """The product of two factored gradients (B,)."""
    if a.height and b.height:
        left = (a.left[:, :, None] == b.left[:, None, :]).to(a.right.dtype)
    elif a.height:  # a unit vector picks an entry
        left = b.left.gather(2, a.left[:, None, :].expand(-1, b.left.shape[1], -1)).mT
    elif b.height:
        left = a.left.gather(2, b.left[:, None, :].expand(-1, a.left.shape[1], -1))
    else:
        left = a.left @ b.left.mT
    return (left * (a.right @ b.right.mT)).sum((1, 2))


class _Projection:
    """A random matrix in blocks: kept while they fit into ROOM, else drawn anew for every batch."""

    def __init__(self, run: Run, size: int, how: str) -> None:
        self.run, self.size, self.how = run, size, how
        self.kept: dict[tuple[str, int], Tensor] = {}
        self.left = ROOM

    def __call__(self, parts: dict[str, Any]) -> Tensor:
        step = max(1, 2**24 // self.size)  # weights a block: 64 MiB
        total: Any = 0
        for name, part in parts.items():
            flat = _whole(part).flatten(1).float()
            for at in range(0, flat.shape[1], step):
                piece = flat[:, at : at + step]
                total = total + piece @ self.block(name, at, piece.shape[1]).to(piece.device)
        return total

    def block(self, name: str, at: int, rows: int) -> Tensor:
        """The part of the matrix that belongs to these weights, (rows, size)."""
        if (name, at) in self.kept:
            return self.kept[name, at]
        rng = self.run.rng("projection", self.how, self.size, name, at)
        if self.how == "gaussian":
            made = torch.randn(rows, self.size, generator=rng)
        else:
            made = torch.empty(rows, self.size).random_(2, generator=rng).mul_(2).sub_(1)
        made /= self.size**0.5
        if made.nbytes <= self.left:
            self.kept[name, at] = made
            self.left -= made.nbytes
        return made
