from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.calibrating import Unit, batches_of, walk
from trainlore.primitives.grids import Grid, free, settle
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.masks import plain, weight_of
from trainlore.primitives.numbers import lanes, limits, straight, unlanes
from trainlore.primitives.reparam import freeze, layers, put_beside, reshaped, turned
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def clipping(weight: Tensor, low: Tensor, high: Tensor, bits: int, per: str | int) -> tuple[Tensor, Tensor]:
    """Scale and zero point (lanes, 1) of the range from sigmoid(low) min w to sigmoid(high) max w, which holds 0."""
    limits(bits, False)
    rows = lanes(weight.float(), per)
    least = low.sigmoid() * rows.amin(1, keepdim=True).clamp(max=0)
    most = high.sigmoid() * rows.amax(1, keepdim=True).clamp(min=0)
    scale = ((most - least) / (2**bits - 1)).clamp(min=1e-5)
    return scale, (-least / scale).round().clamp(0, 2**bits - 1)


def rounded(weight: Tensor, scale: Tensor, zero: Tensor, bits: int, per: str | int) -> Tensor:
    """W (out, in) on the grid, straight through the rounding to W and to the scale."""
    rows = lanes(weight.float(), per) / scale
    ints = straight(rows)
    return unlanes(((ints + zero).clamp(0, 2**bits - 1) - zero) * scale, weight.shape, per)


def saliency(model: Model, chosen: dict[str, nn.Module], batches: list[Batch]) -> dict[str, Tensor]:
    """Mean square of each weight's gradient (out, in) over the batches, one row each, by path."""
    weights = {path: layer.weight for path, layer in chosen.items()}
    was = {name: p.requires_grad for name, p in model.net.named_parameters()}
    training = model.net.training
    model.net.eval().requires_grad_(False)
    total = {path: torch.zeros_like(w, dtype=torch.float32) for path, w in weights.items()}
    try:
        for w in weights.values():
            w.requires_grad_(True)
        for batch in batches:
            if "labels" not in batch:
                raise Bad("data has no labels, and saliency needs the loss of its rows: give some, or saliency=0")
            with torch.enable_grad():
                loss = per_row(rowwise(model.kind, batch, model(batch)), batch, model.kind).mean()
            for path, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                total[path] += slope.float().square()
    finally:
        for name, p in model.net.named_parameters():
            p.requires_grad_(was[name])
        model.net.train(training)
    return {path: (t.T if turned(chosen[path]) else t) / len(batches) for path, t in total.items()}


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
        return rounded(weight, *clipping(weight, self.low, self.high, self.bits, self.per), self.bits, self.per)

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
        if self.rank < 1 or self.epochs < 1:
            raise Bad(f"rank={self.rank} and epochs={self.epochs} must be at least 1")
        if self.saliency < 0:
            raise Bad(f"saliency={self.saliency} must be at least 0 (0 is ApiQ)")
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
        made = {
            path: Clipped(layer, self.bits, self.per, self.rank, run.rng("saliency_apiq", path))
            for path, layer in unit.layers.items()
        }
        for path, layer in unit.layers.items():
            parametrize.register_parametrization(layer, "weight", made[path])
        optimizer = torch.optim.AdamW(
            [
                {"params": [p for m in made.values() for p in (m.low, m.high)], "lr": self.lr_range},
                {"params": [p for m in made.values() for p in (m.up, m.down)], "lr": self.lr},
            ],
            weight_decay=self.decay,
        )
        with torch.enable_grad():
            for at in [at for _ in range(self.epochs) for at in range(len(unit.calls))]:
                optimizer.zero_grad()
                out = unit(at).float()
                loss = _gap(out, unit.goals[at], unit.real[at]) + _gap(out, near[at], unit.real[at])
                if felt:
                    held = ((felt[p] * (m.quantized(weights[p]) - weights[p]).square()).sum() for p, m in made.items())
                    loss = loss + self.saliency * torch.stack(list(held)).sum()
                loss.backward()
                optimizer.step()
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


def _gap(out: Tensor, goal: Tensor, real: Tensor | None) -> Tensor:
    """Mean squared distance (scalar), padding left out."""
    gap = (out - goal.float()).square()
    return gap[real].mean() if real is not None and real.shape == gap.shape[:2] else gap.mean()
