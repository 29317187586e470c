from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import Unit, batches_of, unpadded, walk
from trainlore.primitives.fisher import saliency
from trainlore.primitives.grids import Grid, free, settle
from trainlore.primitives.masks import plain, weight_of
from trainlore.primitives.numbers import lanes, limits
from trainlore.primitives.ranges import clip_rounded, clipping
from trainlore.primitives.reparam import freeze, layers, put_beside, reshaped, turned
from trainlore.primitives.rounding import descend, put_on
from trainlore.runs import Run
from trainlore.verbs import Fit, method


class Clipped(nn.Module):
    """weight -> its quantized form with learned clipping, and two thin matrices added."""

    def __init__(self, layer: nn.Module, bits: int, per: str | int, rank: int, draw: torch.Generator) -> None:
        super().__init__()
        weight = weight_of(layer)
        self.bits, self.per, self.turned = bits, per, turned(layer)
        ends = torch.full((len(lanes(weight, per)), 1), 4.0, device=weight.device)  # sigmoid(4) = 0.98
        self.low, self.high = nn.Parameter(ends.clone()), nn.Parameter(ends)
        rank = min(rank, *weight.shape)
        bound = weight.shape[1] ** -0.5
        down = torch.rand(rank, weight.shape[1], generator=draw) * 2 * bound - bound
        self.up = nn.Parameter(torch.zeros(len(weight), rank, device=weight.device))
        self.down = nn.Parameter(down.to(weight.device))

    def quantized(self, weight: Tensor) -> Tensor:
        """W_q (out, in), float32."""
        return clip_rounded(weight, self.low, self.high, self.bits, self.per)

    def forward(self, weight: Tensor) -> Tensor:
        out = self.quantized(weight.T if self.turned else weight) + self.up @ self.down
        return (out.T if self.turned else out).to(weight.dtype)


@method(
    name="saliency_apiq",
    title="Saliency-aware ApiQ: partial retraining at 2 bits",
    paper="arXiv:2504.13932",
    lit="p461",
    family="compress/quantize",
    year=2025,
    tier="llm",
    status="stable",
)
class SaliencyApiQ(Fit):
    """Learn clipped ranges and thin matrices block by block, and keep the weights that the loss feels most where they were.

    ## What it does
    Weights stay frozen. For each block f, with X what it reads in the model as it was and X' in the model quantized so far:

        W_q = quantize(W; range from sigmoid(l) min W to sigmoid(h) max W),     W' = W_q + B A
        minimize mean (f(W', X') - f(W, X))^2 + mean (f(W', X') - f(W, X'))^2 + saliency * sum_ij F_ij (W_q - W)_ij^2

    over l, h, B and A by AdamW, straight through the rounding. F is the mean square of each weight's gradient over single
    rows in the model as it was (the diagonal of the Fisher information). saliency = 0 is ApiQ.

    ## Claim
    LLaMA 7B and 13B at 2 bits: what ApiQ loses in accuracy is made less by 10.85% and 7.54%. Tricks of training with
    quantization do not help where the weights are frozen and rows are few.

    ## Cost
    A forward and backward pass a calibration row; then `epochs` passes forward and back over `rows` a block. Memory: F
    and a copy of one set of gradients, 8 bytes a weight; three sets of activations of one block.

    ## Fields worth tuning
    `saliency`, `epochs`, `per` (64 in the authors' script at 2 bits).

    ## Watch out
    On the small text world the term made no difference to ApiQ that could be told from chance. F comes from the rows'
    labels: rows of another task protect other weights. `fold` adds B A to the weight and ends its few bits.

    ## Differs from the paper
    F is a mean over rows, so that `saliency` does not grow with them; the released code takes squared gradients that were
    collected before, times 1e-3, and does not say over how many rows. The adapters have no factor (16 / 64 there). Ranges
    always hold 0.

    ## See also
    flexround, eora, lora, gptq.
    """

    bits: int = 2
    """Bits of a weight, 2 to 8."""
    per: str | int = 64
    """Who shares a scale: tensor, channel, or a group size such as 64."""
    rank: int = 64
    """Columns of B; at most the smaller side of a weight is used."""
    saliency: float = 0.1
    """How much the weights that the loss feels are held; 0 is ApiQ."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a step."""
    epochs: int = 20
    """Passes over the calibration rows for each block."""
    lr: float = 5e-4
    """AdamW's learning rate of the thin matrices."""
    lr_range: float = 5e-3
    """AdamW's learning rate of the ranges."""
    decay: float = 0.1
    """AdamW's weight decay of both."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the linear layers to quantize; all but the output head when empty."""
    tolerance: float = 0.9
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"saliency": [0.001, 10.0, "log"], "lr": [1e-4, 5e-3, "log"]}
    tiny = {"world": "text", "bits": 2, "per": 16, "rank": 4, "rows": 16, "epochs": 2}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.rank < 1 or self.epochs < 1 or self.saliency < 0:
            held = f"rank={self.rank}, epochs={self.epochs}, saliency={self.saliency}"
            raise Bad(f"{held}: give at least 1, 1 and 0 (saliency=0 is ApiQ)")
        limits(self.bits, False)
        chosen = plain(layers(model, self.targets))
        free(model, chosen)
        name = "saliency_apiq"
        batches = batches_of(run, model, data, self.rows, self.size, name)
        felt = saliency(model, chosen, batches_of(run, model, data, self.rows, 1, name)) if self.saliency else {}
        for unit in walk(model, chosen, batches, goals=True):
            self._fit(run, unit, felt)
        self._finish(model, chosen)
        return reshaped(model)

    def _fit(self, run: Run, unit: Unit, felt: dict[str, Tensor]) -> None:
        """Learn the ranges and thin matrices of the unit's layers; they stay on as parametrizations."""
        with torch.no_grad():
            near = [unit(at).detach() for at in range(len(unit.calls))]  # the untouched block on what it reads now
        weights = {path: weight_of(layer).float().clone() for path, layer in unit.layers.items()}
        draw = {path: run.rng("saliency_apiq", path) for path in unit.layers}
        made = put_on(unit.layers, lambda p, layer: Clipped(layer, self.bits, self.per, self.rank, draw[p]))
        groups = [
            {"params": [p for m in made.values() for p in (m.low, m.high)], "lr": self.lr_range},
            {"params": [p for m in made.values() for p in (m.up, m.down)], "lr": self.lr},
        ]

        def loss(step: int, at: int) -> Tensor:
            out = unit(at).float()
            apart = [unpadded((out - goal[at].float()).square(), unit.real[at]).mean() for goal in (unit.goals, near)]
            if not felt:
                return apart[0] + apart[1]
            held = [(felt[p] * (m.quantized(weights[p]) - weights[p]).square()).sum() for p, m in made.items()]
            return apart[0] + apart[1] + self.saliency * torch.stack(held).sum()

        order = list(range(len(unit.calls))) * self.epochs
        descend(order, loss, [torch.optim.AdamW(groups, weight_decay=self.decay)])
        for m in made.values():
            m.requires_grad_(False)

    @torch.no_grad()
    def _finish(self, model: Model, chosen: dict[str, nn.Module]) -> None:
        """Write the quantized weights in, and put the thin matrices beside them."""
        freeze(model.net)
        for path, layer in chosen.items():
            made = layer.parametrizations.weight[0]
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            weight = weight_of(layer).float()
            scale, zero = clipping(weight, made.low, made.high, self.bits, self.per)
            grid = Grid(f"uint{self.bits}", self.per, scale, zero.int())
            settle(model, path, layer, grid.round(weight), grid)
            put_beside(model.net, path, made.up, made.down)
