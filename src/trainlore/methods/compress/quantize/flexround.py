from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import Unit, batches_of, walk
from trainlore.primitives.grids import Grid, free, integers, settle
from trainlore.primitives.masks import CONVOLUTIONS, matrices, plain, weight_of
from trainlore.primitives.numbers import lanes, limits, scales, straight, unlanes
from trainlore.primitives.reparam import turned
from trainlore.primitives.rounding import put_on, reconstruct, take_off
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def divided(
    weight: Tensor, log_step: Tensor, log_each: Tensor, zero: Tensor, bits: int, per: str | int, symmetric: bool
) -> Tensor:
    """s1 * (clip(round(W / (s1 * S)) + zero) - zero), all scales given as logarithms.

    weight, log_each (out, ...): S = S2 s3 multiplied out; log_step (lanes, 1): s1; zero (lanes, 1). Returns the shape of
    `weight`, float32. By the division dL/d(log S) carries a factor W: large weights may move by several steps.
    """
    low, high = limits(bits, symmetric)
    ints = straight(lanes(weight.float() / log_each.exp(), per) / log_step.exp())
    return unlanes(((ints + zero).clamp(low, high) - zero) * log_step.exp(), weight.shape, per)


class Division(nn.Module):
    """weight -> its quantized form, with everything that is learned about the rounding."""

    def __init__(self, layer: nn.Module, bits: int, per: str | int, symmetric: bool) -> None:
        super().__init__()
        self.bits, self.per, self.symmetric, self.turned = bits, per, symmetric, turned(layer)
        weight = self._facing(layer.weight.detach())
        step, zero = scales(weight, bits, per, symmetric)
        self.step = nn.Parameter(step.log())  # s1
        self.each = nn.Parameter(torch.zeros_like(weight, dtype=torch.float32))  # S2
        ones = [1] * (weight.dim() - 2)
        self.row = nn.Parameter(torch.zeros(len(weight), 1, *ones, device=weight.device))  # s3
        column = nn.Parameter(torch.zeros(1, weight.shape[1], *ones, device=weight.device))
        self.column = column if isinstance(layer, CONVOLUTIONS) else None  # s4
        self.register_buffer("zero", zero)

    def forward(self, weight: Tensor) -> Tensor:
        each = self.each + self.row + (0.0 if self.column is None else self.column)
        out = divided(self._facing(weight), self.step, each, self.zero, self.bits, self.per, self.symmetric)
        return self._facing(out).to(weight.dtype)

    def _facing(self, weight: Tensor) -> Tensor:
        return weight.T if self.turned else weight


@method(
    name="flexround",
    title="FlexRound: learnable rounding by element-wise division",
    paper="arXiv:2306.00317",
    lit="p007",
    code="robotseye/FlexRound_LRQ",
    family="compress/quantize",
    year=2023,
    tier="core",
    status="stable",
)
class FlexRound(Fit):
    """Learn which way to round each weight, block by block, by dividing it before it is rounded.

    ## What it does
    For a weight W (out, in) and the grid of round-to-nearest as the start:

        W' = s1 * clip(round(W / (s1 * S2 * s3)))       s1 a lane's step, S2 (out, in), s3 (out, 1), S2 = s3 = 1 at first
                                                        (and s4, one an input channel, in convolutions)
        minimize || f(W, X) - f(W', X') ||^2            over s1, S2, s3 > 0, by Adam, straight through the rounding

    where f is one repeated block (or one layer), X its inputs in the model as it was, X' its inputs in the model quantized
    so far. Blocks are done in order; the result holds s1 times integers, in the dtype it had.

    ## Claim
    First broad study of uniform post-training quantization with one scale a tensor, over vision, language understanding
    and generation; language models up to LLaMA with negligible loss against half precision.

    ## Cost
    Two forward passes over `rows` a block, then `steps` passes forward and back through that block. Memory: two
    sets of activations of one block, five numbers a weight of that block.

    ## Fields worth tuning
    `lr` (the authors on LLaMA 2: 3e-3 at 4 bits, 2.5e-3 at 3), `steps` (5000 there), `rows` (512 there).

    ## Watch out
    It fits the rows it is shown: a few, or rows of another kind, make it worse than round-to-nearest on others. Layers
    outside the repeated blocks are fitted by themselves.

    ## Differs from the paper
    The loss leaves padding out. The start is the grid of the smallest and largest weight (the authors can search a
    tighter one). Activations stay as they are.

    ## See also
    nearest, gptq.
    """

    bits: int = 4
    """Bits of a weight, 2 to 8."""
    per: str | int = "channel"
    """Who shares a step: tensor, channel, or a group size such as 128."""
    symmetric: bool = False
    """A grid around 0, without a zero point."""
    unit: str = "block"
    """What is reconstructed at once: block (the model's repeated layers; other layers by themselves) or layer."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    steps: int = 500
    """Optimizer steps for each block."""
    size: int = 8
    """Rows a step."""
    lr: float = 3e-3
    """Adam's learning rate for the logarithms of the scales; it falls to 0 along half a cosine."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to round; all but the output head when empty."""
    tolerance: float = 0.35
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"lr": [0.0005, 0.01, "log"]}
    tiny = {"world": "text", "bits": 4, "steps": 10, "rows": 16}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.steps < 1:
            raise Bad(f"steps={self.steps} must be at least 1")
        form = integers(self.bits, self.symmetric)
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "flexround")
        for unit in walk(model, layers, batches, self.unit, goals=True):
            self._reconstruct(run, model, unit, form)
        return model

    def _reconstruct(self, run: Run, model: Model, unit: Unit, form: str) -> None:
        """Fit the rounding of the unit's layers, and write it in."""
        rounds = put_on(unit.layers, lambda path, layer: Division(layer, self.bits, self.per, self.symmetric))
        optimizer = torch.optim.Adam([p for one in rounds.values() for p in one.parameters()], lr=self.lr)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        reconstruct(run, "flexround", unit, self.steps, [optimizer], [fall])
        take_off(unit.layers)
        for path, layer in unit.layers.items():
            step = rounds[path].step.detach().exp()
            settle(model, path, layer, weight_of(layer), Grid(form, self.per, step, rounds[path].zero))
