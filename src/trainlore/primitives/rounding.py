"""Roundings that are learned: modules that say a layer's rounded weight or inputs, put on for some steps and taken off.

The steps go over the batches of a unit of `calibrating.walk`; what was learned is read off the modules at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.primitives.activations import found
from trainlore.primitives.calibrating import Unit
from trainlore.primitives.grids import Grid, snap
from trainlore.primitives.holding import let_go
from trainlore.primitives.numbers import lanes, limits, stepped, straight, unlanes
from trainlore.primitives.ranges import SHARES
from trainlore.primitives.reparam import turned
from trainlore.runs import Run

Made = TypeVar("Made", bound=nn.Module)


# ---- the steps


def put_on(layers: Mapping[str, nn.Module], make: Callable[[str, nn.Module], Made]) -> dict[str, Made]:
    """Let the module that `make(path, layer)` gives say each layer's weight from now on: the modules, by path."""
    made = {path: make(path, layer) for path, layer in layers.items()}
    for path, layer in layers.items():
        parametrize.register_parametrization(layer, "weight", made[path])
    return made


def take_off(layers: Mapping[str, nn.Module]) -> None:
    """Make the layers' weights plain again, as they are said last, and held still."""
    let_go({path: layer for path, layer in layers.items() if parametrize.is_parametrized(layer, "weight")})
    for layer in layers.values():
        layer.weight.requires_grad_(False)


def descend(
    order: Iterable[int],
    loss: Callable[[int, int], Tensor],
    optimizers: Sequence[torch.optim.Optimizer],
    schedules: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
    after: Callable[[int], None] | None = None,
) -> None:
    """For each batch numbered in `order` a step of all optimizers down loss(step, batch), of all schedules, and `after(step)`."""
    for step, at in enumerate(order):
        with torch.enable_grad():
            for one in optimizers:
                one.zero_grad()
            loss(step, at).backward()
        for one in (*optimizers, *schedules):
            one.step()
        if after is not None:
            after(step)


def reconstruct(
    run: Run,
    name: str,
    unit: Unit,
    steps: int,
    optimizers: Sequence[torch.optim.Optimizer],
    schedules: Sequence[torch.optim.lr_scheduler.LRScheduler] = (),
    loss: Callable[[int, int], Tensor] | None = None,
    after: Callable[[int], None] | None = None,
) -> None:
    """`descend` over batches of a unit drawn under `name`, down its error from its goals where no other loss is given."""
    order = run.numpy(name, unit.path).integers(len(unit.calls), size=steps)
    descend(order.tolist(), loss or (lambda step, at: unit.error(at)), optimizers, schedules, after)


# ---- what is learned


class Raised(nn.Module):
    """weight -> floor + h of its grid's steps, h in [0, 1] learned: s (clip(floor(W / s) + h(V) + z) - z)."""

    def __init__(self, layer: nn.Module, grid: Grid) -> None:
        super().__init__()
        self.grid, self.turned = grid, turned(layer)
        steps = lanes(self._facing(layer.weight.detach()).float(), grid.per) / grid.scale
        self.register_buffer("floor", steps.floor())
        self.up = nn.Parameter(-(1.2 / (steps - steps.floor() + 0.1) - 1).log())  # h is the rest at first

    def h(self) -> Tensor:
        """How far each weight goes up: 0 to 1, both within reach."""
        return (1.2 * self.up.sigmoid() - 0.1).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        return self._facing(self._values(self.h(), self._facing(weight).shape)).to(weight.dtype)

    def hard(self, shape: torch.Size) -> Tensor:
        """The matrix with every choice made."""
        return self._values((self.up >= 0).float(), shape)

    def _values(self, h: Tensor, shape: torch.Size) -> Tensor:
        low, high = limits(self.grid.bits, self.grid.form.startswith("i"))
        ints = (self.floor + h + self.grid.zero).clamp(low, high)
        return unlanes((ints - self.grid.zero) * self.grid.scale, shape, self.grid.per)

    def _facing(self, weight: Tensor) -> Tensor:
        return weight.T if self.turned else weight


class Partly(nn.Module):
    """Rounds inputs by a scale that learns; a random share of the values, drawn anew each time, passes as it is."""

    def __init__(self, x: Tensor, bits: int, keep: float, generator: torch.Generator) -> None:
        super().__init__()
        self.bits, self.keep, self.generator = bits, keep, generator
        scale, zero = found(x, f"uint{bits}")
        tries = [scale * clip for clip in SHARES]
        gaps = torch.stack([(snap(x, f"uint{bits}", s, zero) - x).abs().pow(2.4).mean() for s in tries])
        self.scale = nn.Parameter(tries[int(gaps.argmin())])
        self.register_buffer("zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        rounded = stepped(x, self.scale, self.zero, self.bits).to(x.dtype)
        left = torch.rand(x.shape, generator=self.generator).to(x.device) < self.keep
        return torch.where(left, x, rounded)


class Moved(nn.Module):
    """A linear layer without its bias on the grid, learned: V in steps of the grid, the weight's and the inputs' scales and zeros.

    `reads`: scale and zero point (1,) of the inputs at first, rounded to `bits`; None: they are left as they are.
    """

    def __init__(self, weight: Tensor, grid: Grid, reads: tuple[Tensor, Tensor] | None, bits: int) -> None:
        super().__init__()
        self.weight, self.grid, self.bits = weight, grid, bits
        self.moved = nn.Parameter(torch.zeros_like(lanes(weight, grid.per)))
        self.log = nn.Parameter(torch.zeros_like(grid.scale))
        self.zero = nn.Parameter(grid.zero.float(), requires_grad=grid.form.startswith("u"))
        self.start, self.log_in, self.zero_in = None, None, None
        if reads is not None:
            self.start, self.log_in = reads[0], nn.Parameter(torch.zeros_like(reads[0]))
            self.zero_in = nn.Parameter(reads[1].clone())

    @property
    def target(self) -> Tensor:
        """W + V (out, in)."""
        rows = lanes(self.weight, self.grid.per) + self.grid.scale * self.moved
        return unlanes(rows, self.weight.shape, self.grid.per)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, in) -> (n, out)."""
        grid, rows = self.grid, lanes(self.target, self.grid.per)
        even = grid.form.startswith("i")
        zero = straight(self.zero).clamp(*limits(grid.bits, even))
        weight = unlanes(stepped(rows, grid.scale * self.log.exp(), zero, grid.bits, even), self.weight.shape, grid.per)
        if self.start is not None:
            zero = straight(self.zero_in).clamp(*limits(self.bits, False))
            x = stepped(x, self.start * self.log_in.exp(), zero, self.bits)
        return F.linear(x, weight)

    @torch.no_grad()
    def settled(self) -> tuple[Tensor, Grid, tuple[Tensor, Tensor] | None]:
        """The weight on its last grid, the grid, and scale and zero point of the inputs."""
        zero = self.zero.round().clamp(*limits(self.grid.bits, self.grid.form.startswith("i"))).int()
        grid = Grid(self.grid.form, self.grid.per, self.grid.scale * self.log.exp(), zero)
        reads = None
        if self.start is not None:
            reads = self.start * self.log_in.exp(), self.zero_in.round().clamp(0, 2**self.bits - 1)
        return grid.round(self.target), grid, reads
