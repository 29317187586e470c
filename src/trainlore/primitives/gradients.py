"""Gradients of each row's loss, the rows kept apart: whole or projected, their lengths, their products with a direction.

`row_norms` and `row_dots` hold no gradient: see `ghosts`. Everything here runs in evaluation mode and is on the run's meter.
A flat gradient has the order of `net.named_parameters()`, trained weights only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainlore import meter
from trainlore.errors import Bad
from trainlore.primitives import ghosts
from trainlore.primitives.ghosts import Parts, Unfit
from trainlore.primitives.losses import per_row, rowwise

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model
    from trainlore.runs import Run

__all__ = ["Losses", "flat_weights", "gradient_sum", "put_weights", "row_dots", "row_gradients", "row_norms"]

ROOM = 2**28  # bytes of gradients or of a projection held at once
BATCH = 64  # rows that go through the network together
Batch = dict[str, Tensor]
Read = Callable[[Parts, Tensor], None]  # what is wanted of the parts, written into a tensor (B, ...)


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
    `layers`: only weights whose name contains one of these. `chunk`: rows that go through the network together (0: at most
    64); 1: an ordinary backward for each row, which every network can do.
    """
    if project is not None and project < 1:
        raise Bad(f"project={project} must be a number of dimensions above 0, or None for the whole gradient")
    if how not in ("rademacher", "gaussian"):
        raise Bad(f"how={how!r} must be rademacher or gaussian")
    if project is None:
        return _each(run, model, data, chunk, layers, ghosts.write, lambda weights: (_count(weights),))
    return _each(run, model, data, chunk, layers, _Projection(run, project, how), lambda weights: (project,))


def row_norms(run: Run, model: Model, data: Data, layers: str | Sequence[str] | None = None, chunk: int = 0) -> Tensor:
    """The length of each row's gradient, float32 (N,) on the CPU, exactly and without holding the gradients.

    `chunk`: as of `row_gradients`.
    """

    def read(parts: Parts, out: Tensor) -> None:
        out.copy_(ghosts.lengths(parts))

    return _each(run, model, data, chunk, layers, read, lambda weights: ())


def row_dots(
    run: Run, model: Model, data: Data, direction: Tensor, layers: str | Sequence[str] | None = None, chunk: int = 0
) -> Tensor:
    """The product of each row's gradient with a flat direction (P,), float32 (N,) on the CPU, without holding the gradients.

    It is how fast the row's loss rises when the weights move that way. `chunk`: as of `row_gradients`.
    """
    along: dict[str, Tensor] = {}

    def shape(weights: dict[str, nn.Parameter]) -> tuple[()]:
        if direction.shape != (_count(weights),):
            raise Bad(
                f"direction has shape {tuple(direction.shape)}; these weights are {_count(weights)} numbers, flat"
            )
        pieces = direction.to(model.device).split([w.numel() for w in weights.values()])
        along.update({n: p.view(w.shape) for (n, w), p in zip(weights.items(), pieces, strict=True)})
        return ()

    def read(parts: Parts, out: Tensor) -> None:
        out.copy_(ghosts.dots(parts, along))

    return _each(run, model, data, chunk, layers, read, shape)


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
    total = torch.zeros(_count(trained))

    def one(batch: Batch, out: Tensor) -> None:
        row_losses = losses(batch)
        loss = (row_losses * share[batch["row"].cpu()].to(row_losses)).sum()
        slopes = torch.autograd.grad(loss, list(trained.values()), allow_unused=True, materialize_grads=True)
        total.add_(torch.cat([g.flatten().float() for g in slopes]).cpu())

    _pass(run, model, data, 0, one, ())
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


# ---- one pass over the rows


class Losses(nn.Module):
    """A model with its loss as one module: batch -> the loss of each row (B,). Functional calls may exchange its weights."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net, self.model = model.net, model

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss of each row over its targets, (B,)."""
        return per_row(rowwise(self.model.kind, batch, self.model(batch)), batch, self.model.kind)


def _ready(
    model: Model, data: Data, layers: str | Sequence[str] | None
) -> tuple[nn.Module, dict[str, nn.Parameter], Data]:
    """The losses, the weights asked for by their names in them, and the data with token columns if need be."""
    from trainlore.runs import readable

    data = readable(model, data, who="taking gradients", losses=True)
    losses = Losses(model)
    trained = {n: p for n, p in losses.named_parameters() if p.requires_grad}
    parts = (layers,) if isinstance(layers, str) else layers
    weights = {n: p for n, p in trained.items() if parts is None or any(x in n.removeprefix("net.") for x in parts)}
    if not weights:
        have = ", ".join(n.removeprefix("net.") for n in list(trained)[:8])
        raise Bad(f"layers={layers!r} names no trained weight; there are {have or 'none'}")
    return losses, weights, data


def _count(weights: dict[str, nn.Parameter]) -> int:
    return sum(w.numel() for w in weights.values())


def _each(
    run: Run,
    model: Model,
    data: Data,
    chunk: int,
    layers: Any,
    read: Read,
    shape: Callable[[dict[str, nn.Parameter]], tuple[int, ...]],
) -> Tensor:
    """What is read of each row's gradient, over all rows, by the fastest way that suits the network."""
    if chunk < 0:
        raise Bad(f"chunk={chunk} must be 0 (at most {BATCH}) or a number of rows")
    losses, weights, data = _ready(model, data, layers)
    listener, price, wide = ghosts.Listener(losses, weights), _Price(losses), shape(weights)

    checked: list[bool] = []

    def captured(batch: Batch, out: Tensor) -> None:
        if len(batch["row"]) == 1:
            return single(batch, out)
        parts = listener(batch)
        if not checked:
            checked.append(_same(ghosts.cut(parts, slice(0, 1)), losses, weights, batch))
        if not checked[0]:
            raise Unfit("rows of a batch do not stay apart in this network")
        read(parts, out)

    def mapped(batch: Batch, out: Tensor) -> None:
        with price.of(batch):
            read(ghosts.vectorized(losses, weights, batch), out)

    def single(batch: Batch, out: Tensor) -> None:
        read(ghosts.by_backward(losses, weights, batch), out)

    ways: list[tuple[Callable[[Batch, Tensor], None], int]] = [(single, 1)]
    if chunk != 1:
        ways = [(captured, chunk), (mapped, chunk or min(256, max(1, ROOM // (4 * _count(weights)))))]
        ways += [] if chunk else [(single, 1)]
    for way, size in ways:
        try:
            return _pass(run, model, data, size, way, wide)
        except RuntimeError as error:
            last = error
        finally:
            listener.close()
    raise Bad(f"{model!r} cannot be vectorized over rows ({last}): give chunk=1") from last


def _same(parts: Parts, losses: nn.Module, weights: dict[str, nn.Parameter], batch: Batch) -> bool:
    """Whether the parts of the first row are its gradient: the rows are apart, and every use of a weight was seen."""
    true = ghosts.by_backward(losses, weights, {k: v[:1] for k, v in batch.items()})
    off = [torch.linalg.vector_norm(ghosts.whole(parts[name]) - gradient) for name, gradient in true.items()]
    size = [torch.linalg.vector_norm(gradient) for gradient in true.values()]
    away, long = (float(torch.linalg.vector_norm(torch.stack(norms))) for norms in (off, size))
    return away <= 1e-3 * long + 1e-12


def _pass(
    run: Run,
    model: Model,
    data: Data,
    size: int,
    one: Callable[[Batch, Tensor], None],
    shape: tuple[int, ...],
) -> Tensor:
    """What `one(batch, out)` writes for every batch of `size` rows (0: what suits the machine), long rows first, back in
    the order of the rows: float32 (N, *shape) on the CPU."""
    from trainlore.runs import TOKENS, passes

    cuts = passes(data, size or BATCH, TOKENS if not size and model.device.type == "cpu" else None)
    # numpy asks for huge pages where it is much, torch does not: its faults take several times as long as the writing
    found = torch.from_numpy(np.empty((len(data), *shape), np.float32))
    was, device = model.net.training, model.device
    model.net.eval()
    try:
        with run.meter.running():
            for rows in cuts:
                batch = {k: v.to(device) for k, v in data.batch(rows, model).items()}
                if (
                    model.kind == "causal"
                ):  # padding is on the right, where no label looks; a mask costs the fast kernels
                    batch.pop("attention_mask", None)
                low, high = int(rows[0]), int(rows[-1]) + 1
                if high - low == len(rows) and (np.diff(rows) == 1).all():  # together in the answer, too
                    one(batch, found[low:high])
                else:
                    out = torch.empty(len(rows), *shape)
                    one(batch, out)
                    found[rows] = out
    finally:
        model.net.train(was)
    return found


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
        with ghosts.uncounted():
            yield


class _Projection:
    """A random matrix in blocks: kept while they fit into ROOM, else drawn anew for every batch."""

    def __init__(self, run: Run, size: int, how: str) -> None:
        self.run, self.size, self.how = run, size, how
        self.kept: dict[tuple[str, int], Tensor] = {}
        self.left = ROOM

    def __call__(self, parts: Parts, out: Tensor) -> None:
        """Write the projected gradients into `out` (B, size)."""
        step = max(1, 2**24 // self.size)  # weights a block: 64 MiB
        out.zero_()
        for name, part in parts.items():
            size = ghosts.entries(part)
            few = max(1, ROOM // 4 // size)
            for start in range(0, len(out), few):
                rows = slice(start, start + few)
                flat = ghosts.whole(ghosts.cut({name: part}, rows)[name]).flatten(1).float()
                for at in range(0, size, step):
                    piece = flat[:, at : at + step]
                    out[rows] += (piece @ self.block(name, at, piece.shape[1]).to(piece.device)).to(out)

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
