"""Calibration: a few rows go through a net one block at a time, and what its layers read on the way is looked at.

A walk holds the activations into and out of one block, never those of the whole net: a block is changed, run again, and
what it gives now is what the next one reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.masks import CONVOLUTIONS
from trainlore.primitives.reparam import still
from trainlore.runs import Run

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a module is called with


def batches_of(run: Run, model: Model, data: Data, rows: int, size: int, *key: Any) -> list[Batch]:
    """`rows` calibration rows drawn by the name `key`, encoded, in batches of `size` on the model's device."""
    if rows < 1 or size < 1:
        raise Bad(f"rows={rows} and size={size} must be at least 1")
    if not len(data):
        raise Bad("there are no calibration rows: give data with at least one batch")
    size = min(size, rows)
    if len(data) < size:
        raise Bad(f"{len(data)} calibration rows are fewer than a batch of size={size}: give more, or lower `size`")
    if model.input == "input_ids" and "input_ids" not in data.columns:
        data = model.encode(data, truncate=True)
    if model.input not in data.columns:
        raise Bad(
            f"the model reads {model.input!r}, which the calibration rows lack: they have {', '.join(data.columns)}"
        )
    chosen = run.numpy("calibration", *key).permutation(len(data))[:rows]
    found = [data.batch(chosen[at : at + size], model) for at in range(0, len(chosen), size)]
    return [{k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in b.items()} for b in found]


@dataclass(eq=False)
class Unit:
    """A block of the net (or a layer outside the blocks), with what goes into it."""

    path: str
    module: nn.Module
    layers: dict[str, nn.Module]  # the layers to compress that lie in it, by their path in the net
    calls: list[Call]  # what it is called with, a batch each, everything before it as it is now
    real: list[Tensor | None]  # bool (B,T) of the tokens that are no padding, a batch each
    goals: list[Tensor] = field(default_factory=list)  # what it gave in the untouched net, if the walk was asked for it

    def __call__(self, at: int) -> Tensor:
        """What it gives for batch `at` as it is now (with a gradient where that is on); paid for."""
        return self.run(self.calls[at])

    def run(self, call: Call) -> Tensor:
        """What it gives as it is now when it is called like this; paid for."""
        args, kwargs = call
        return first(self._shell(*args, **kwargs))

    @property
    def _shell(self) -> nn.Module:
        if "_made" not in self.__dict__:
            self.__dict__["_made"] = Model(
                _Shell(self.module), "encoder"
            ).net  # a net of its own, so that the meter counts
        return self.__dict__["_made"]

    def error(self, at: int) -> Tensor:
        """Mean squared distance (scalar) of what it gives for batch `at` from `goals`, padding left out."""
        return unpadded((self(at).float() - self.goals[at].float()).square(), self.real[at]).mean()


class _Shell(nn.Module):
    """A module in a shell of its own: hooks on the shell go away with it."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


class _Enough(Exception):
    """The pass has shown what was wanted of it."""


def walk(
    model: Model, layers: Mapping[str, nn.Module], batches: list[Batch], by: str = "block", goals: bool = False
) -> Iterator[Unit]:
    """The net's units in the order of its passes; change each before asking for the next.

    by "block": the model's repeated blocks, and layers outside them by themselves; "layer": every layer by itself.
    goals: also what each unit gives in the untouched net, at the cost of a second set of activations.

    The net is in evaluation mode and without gradients while it is walked; both are put back at the end.
    """
    if by not in ("block", "layer"):
        raise Bad(f"unit={by!r} is neither block nor layer")
    training = model.net.training
    model.net.eval()
    try:
        with still(model.net):
            yield from _walk(model, layers, batches, by, goals)
    finally:
        model.net.train(training)


def _walk(model: Model, layers: Mapping[str, nn.Module], batches: list[Batch], by: str, goals: bool) -> Iterator[Unit]:
    real = [b["attention_mask"].bool() if "attention_mask" in b else None for b in batches]
    places = _units(model, layers, by)
    chain = _chained(model, [path for path, _ in places], batches[0])
    apart = any(path not in chain for path, _ in places[1:])
    before = model.copy() if goals and apart else model  # nothing was changed yet where the first unit is read
    calls: list[Call] = []
    aside: list[Call] = []  # what the unit is called with in the untouched net
    for at, (path, own) in enumerate(places):
        if path not in chain:
            calls = [seen(model, path, batch) for batch in batches]
            aside = [seen(before, path, batch) for batch in batches] if goals and before is not model else calls
        unit = Unit(path, model.net.get_submodule(path), {name: layers[name] for name in own}, calls, real)
        if goals:
            with torch.no_grad():
                unit.goals = [unit.run(call).detach() for call in aside]
        yield unit
        if at + 1 < len(places) and places[at + 1][0] in chain:
            with torch.no_grad():
                calls = [_with(call, unit.run(call).detach()) for call in calls]
            aside = [_with(call, goal) for call, goal in zip(aside, unit.goals, strict=True)] if goals else []


def _units(model: Model, layers: Mapping[str, nn.Module], by: str) -> list[tuple[str, list[str]]]:
    """(path of a module, names of the layers in it) in the order of the net; every layer is in exactly one."""
    blocks: set[int] = set()
    if by == "block":
        try:
            blocks = {id(m) for m in model.blocks if next(m.children(), None) is not None}
        except Bad:  # a net without repeated layers
            blocks = set()
    done: set[str] = set()
    found = []
    for path, module in model.net.named_modules():
        own = [
            n for n in layers if n not in done and (n == path or (id(module) in blocks and n.startswith(f"{path}.")))
        ]
        if own:
            done |= set(own)
            found.append((path, own))
    return found


@torch.no_grad()
def _chained(model: Model, paths: list[str], batch: Batch) -> set[str]:
    """Those units that are called with exactly what the one before gave, and with nothing else that it could change."""
    calls: list[tuple[str, Call, Tensor]] = []
    hooks = [
        model.net.get_submodule(path).register_forward_hook(
            lambda m, args, kwargs, out, path=path: calls.append((path, (args, kwargs), first(out))), with_kwargs=True
        )
        for path in paths
    ]
    try:
        model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    linked = set()
    for (_, (before, kwargs), out), (path, (args, others), _) in pairwise(calls):
        same = kwargs.keys() == others.keys() and all(_alike(kwargs[k], v) for k, v in others.items())
        if args and args[0] is out and same and len(args) == len(before) and all(map(_alike, before[1:], args[1:])):
            linked.add(path)
    once = [path for path, _, _ in calls]
    if lost := [p for p in paths if p not in once]:
        raise Bad(f"{lost[0]} is not run by the model: leave it out of `targets`")
    return {p for p in linked if once.count(p) == 1}


def _alike(one: Any, other: Any) -> bool:
    return one is other or (isinstance(other, bool | int | float | str) and one == other)


@torch.no_grad()
def seen(model: Model, path: str, batch: Batch) -> Call:
    """What the module at `path` is called with when the model reads the batch; the pass ends there."""
    found: list[Call] = []

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Enough

    hook = model.net.get_submodule(path).register_forward_pre_hook(look, with_kwargs=True)
    try:
        model(batch)
    except _Enough:
        pass
    finally:
        hook.remove()
    if not found:
        raise Bad(f"{path} is not run by the model: leave it out of `targets`")
    return found[0]


def first(result: Any) -> Tensor:
    """The tensor of a result, the first of a tuple: what a block hands to the next."""
    return result if isinstance(result, Tensor) else next(v for v in result if isinstance(v, Tensor))


def _with(call: Call, hidden: Tensor) -> Call:
    """The same call with another hidden state."""
    args, kwargs = call
    return (hidden, *args[1:]), kwargs


# ---- what layers read


def rows_read(layer: nn.Module, x: Tensor, real: Tensor | None = None) -> Tensor:
    """What a layer reads as rows (n, in) that its matrix is multiplied with; padding left out.

    x: (..., in), of a convolution (B, channels, ...); real: bool (B,T).
    """
    if isinstance(layer, nn.Conv2d):
        if layer.groups != 1 or isinstance(layer.padding, str):
            raise Bad("a convolution in groups, or padded by name, has no one matrix: leave it out of `targets`")
        patches = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        return patches.transpose(1, 2).flatten(0, 1)
    if isinstance(layer, CONVOLUTIONS):
        raise Bad(f"calibration knows linear layers and 2-D convolutions, not {type(layer).__name__}: leave it out")
    if real is not None and x.shape[:2] == real.shape:
        return x[real]
    return x.flatten(0, -2)


def unpadded(values: Tensor, real: Tensor | None) -> Tensor:
    """Values (B,T,...) at the places (B,T) that are real, a row each; others, or where all are real, as they are."""
    return values[real] if real is not None and real.shape == values.shape[:2] else values


@torch.no_grad()
def listen(unit: Unit, told: Callable[[str, nn.Module, Tensor], None]) -> None:
    """Run the unit over all its batches; `told(path, layer, x (n, in))` hears what each of its layers reads."""
    at = 0

    def hook(path: str) -> Callable[..., None]:
        def hear(layer: nn.Module, args: tuple[Any, ...]) -> None:
            told(path, layer, rows_read(layer, args[0], unit.real[at]))

        return hear

    hooks = [layer.register_forward_pre_hook(hook(path)) for path, layer in unit.layers.items()]
    try:
        for at in range(len(unit.calls)):
            unit(at)
    finally:
        for one in hooks:
            one.remove()


def inputs(unit: Unit, *paths: str) -> dict[str, Tensor]:
    """What the layers named, or all of the unit, read over all batches: (n, in) float32 by path, all of it in memory."""
    heard: dict[str, list[Tensor]] = {path: [] for path in paths or unit.layers}
    listen(unit, lambda path, layer, x: heard[path].append(x.float()) if path in heard else None)
    return {path: torch.cat(heard.pop(path)) for path in list(heard)}


def second_moments(unit: Unit) -> dict[str, Tensor]:
    """X'X / n of what each layer of the unit reads: (in, in) float32, by path. A layer that reads no real row: zeros."""
    sums: dict[str, Tensor] = {}
    count: dict[str, int] = {}

    def add(path: str, layer: nn.Module, x: Tensor) -> None:
        x = x.float()
        if not x.isfinite().all():
            raise Bad(f"what {path} reads holds infinities or NaN: the model is broken before it is compressed")
        if path not in sums:
            sums[path], count[path] = x.new_zeros(x.shape[1], x.shape[1]), 0
        sums[path].addmm_(x.T, x)
        count[path] += len(x)

    listen(unit, add)
    return {path: total / max(1, count[path]) for path, total in sums.items()}


def norms(unit: Unit) -> dict[str, Tensor]:
    """Root mean square of each input of each layer of the unit: (in,) float32, by path."""
    sums: dict[str, Tensor] = {}
    count: dict[str, int] = {}

    def add(path: str, layer: nn.Module, x: Tensor) -> None:
        sums[path] = sums.get(path, 0.0) + x.float().square().sum(0)
        count[path] = count.get(path, 0) + len(x)

    listen(unit, add)
    return {path: (total / max(1, count[path])).sqrt() for path, total in sums.items()}
