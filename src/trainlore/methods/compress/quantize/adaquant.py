from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.activations import Rounder, found, read_rounded
from trainlore.primitives.allocation import allocate, alone
from trainlore.primitives.calibrating import Unit, batches_of, inputs, walk
from trainlore.primitives.grids import Grid, free, integers, settle
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.primitives.rounding import Moved, descend
from trainlore.runs import Run
from trainlore.verbs import Fit, method


@method(
    name="adaquant",
    title="AdaQuant: layer-wise calibration, bits by integer programming",
    paper="arXiv:2006.10518",
    lit="p028",
    code="papers-submission/CalibTIP",
    family="compress/quantize",
    year=2020,
    tier="core",
    status="stable",
)
class AdaQuant(Fit):
    """Move each layer's weights and scales until its rounded outputs are those it gave, and share out bits exactly.

    ## What it does
    For each layer, with X what it reads over the calibration rows and Q rounding to a grid:

        minimize || (W X + b) - (Q_s(W + V) Q_t(X) + b') ||^2     over V, b', the scales s, t and their zero points

    by Adam, straight through the rounding; b' is solved for. With `choices`, the bits of the layers come first: for each
    layer l and each of the bits k, D_lk is what rounding that layer alone does to the outputs, and

        minimize sum_l D_l,k(l)   such that   sum_l size_l k(l) <= bits * sum_l size_l        (an integer program, solved exactly)

    ## Claim
    ResNet-50 on ImageNet with weights and activations of 4 bits in all layers but the smallest two: less than 1 point of
    accuracy lost, calibrated on few unlabelled images; hard to overfit, as a layer has more places than weights.

    ## Cost
    A pass over `rows` through its block for each layer, then `steps` steps of that layer on `places` places. Memory: what
    one layer reads, 4 * rows * places a row * in bytes (in * kernel of a convolution). `choices`: layers * choices passes.

    ## Fields worth tuning
    `lr`, `steps`; `choices` such as (2, 3, 4, 8) with `bits` as their mean.

    ## Watch out
    `choices` takes what layers cost alone and adds it up: at 2 bits costs are no longer additive.

    ## Differs from the paper
    V is counted in steps of the grid and scales in logarithms, so that one `lr` does for all (the authors: 1e-5 for
    weights, 1e-3 for their scales and biases, 0.1 for inputs). A layer that the steps made worse keeps its start. Goals
    are W x of what the layer reads in the net rounded so far. D is the divergence of the outputs, without labels, of
    weights to the nearest. Statistics of batch norms are left as they are.

    ## See also
    nearest, gptq, flexround.
    """

    bits: int = 4
    """Bits of a weight, 2 to 8; with `choices` their mean over all weights."""
    choices: tuple[int, ...] = ()
    """Bits among which each layer gets its own; all get `bits` when empty."""
    reads: int = 0
    """Bits of what the layers read, one grid a layer; as it is when 0."""
    per: str | int = "channel"
    """Who shares a scale: tensor, channel, or a group size such as 128."""
    symmetric: bool = False
    """A grid of the weights around 0, without a zero point."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    steps: int = 100
    """Optimizer steps for each layer; 0 rounds to the nearest and corrects biases."""
    places: int = 1024
    """Tokens (rows, patches) a step."""
    lr: float = 0.01
    """Adam's learning rate, in steps of the grid."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to round; all but the output head when empty."""
    tolerance: float = 0.35
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"lr": [0.001, 0.1, "log"]}
    tiny = {"world": "digits", "bits": 4, "steps": 10, "rows": 32, "reads": 8, "choices": [3, 4, 8]}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.steps < 0 or self.places < 1:
            raise Bad(f"steps={self.steps} must be at least 0 and places={self.places} at least 1")
        for bits in (self.bits, *self.choices, *([self.reads] if self.reads else ())):
            integers(bits, self.symmetric)
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "adaquant")
        bits = dict.fromkeys(layers, self.bits)
        if self.choices:
            size = {path: weight_of(layer).numel() for path, layer in layers.items()}
            costs = {path: {k: float(n * k) for k in self.choices} for path, n in size.items()}
            lost = alone(model, layers, batches, self.choices, self._nearest)
            bits = allocate(lost, costs, float(self.bits * sum(size.values())))
        for unit in walk(model, layers, batches):
            for path, layer in unit.layers.items():
                self._calibrate(run, model, unit, path, layer, bits[path])
        return model

    def _nearest(self, weight: Tensor, bits: int) -> Tensor:
        return Grid.of(weight, integers(bits, self.symmetric), self.per).round(weight)

    def _calibrate(self, run: Run, model: Model, unit: Unit, path: str, layer: nn.Module, bits: int) -> None:
        """Fit the rounding of one layer to what it reads now, and write it in."""
        x, weight = inputs(unit, path)[path], weight_of(layer).float().clone()
        free_bias = layer.bias is not None
        grid = Grid.of(weight, integers(bits, self.symmetric), self.per)
        fit = self._start(x, weight, grid)
        begun = self._gap(fit, x, free_bias)[1]
        optimizer = torch.optim.Adam([p for p in fit.parameters() if p.requires_grad], lr=self.lr)
        draw = run.numpy("adaquant", path)

        def loss(step: int, at: int) -> Tensor:
            some = x[torch.from_numpy(draw.integers(len(x), size=min(self.places, len(x)))).to(x.device)]
            return _spread(fit(some) - F.linear(some, weight), free_bias)

        descend(range(self.steps if len(x) else 0), loss, [optimizer])
        if self.steps and not self._gap(fit, x, free_bias)[1] < begun:
            fit = self._start(x, weight, grid)
        if free_bias:
            layer.bias.sub_(self._gap(fit, x, free_bias)[0])
        rounded, grid, reads = fit.settled()
        settle(model, path, layer, rounded, grid)
        if reads is not None:
            read_rounded(layer, Rounder(f"uint{self.reads}", "tensor", *reads))

    def _start(self, x: Tensor, weight: Tensor, grid: Grid) -> Any:
        """Rounding to the nearest, before anything is learned."""
        reads = found(x, f"uint{self.reads}") if self.reads else None
        return Model(Moved(weight, grid, reads, self.reads), "encoder").net  # a net, so that its passes are paid for

    def _gap(self, fit: Any, x: Tensor, free_bias: bool) -> tuple[Tensor, float]:
        """Mean (out,) of how far the rounded outputs are off over all places, and its mean square as `_spread` counts it."""
        total, square = torch.zeros(len(fit.weight), device=x.device), 0.0
        for some in x.split(self.places):
            gap = fit(some) - F.linear(some, fit.weight)
            total, square = total + gap.sum(0), square + float(gap.double().square().sum())
        mean = total / max(1, len(x))
        return mean, square / max(1, len(x) * len(mean)) - (float(mean.double().square().mean()) if free_bias else 0.0)


def _spread(gap: Tensor, free_bias: bool) -> Tensor:
    """Mean square of a gap (n, out), around its mean where a bias can take that away."""
    return (gap - gap.mean(0) if free_bias else gap).square().mean()
