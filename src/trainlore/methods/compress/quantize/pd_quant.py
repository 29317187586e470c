from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.activations import Rounder, found, read_rounded
from trainlore.primitives.calibrating import Call, Unit, batches_of, first, listen, seen, walk
from trainlore.primitives.grids import Grid, free, integers, settle, snap
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.primitives.numbers import lanes, limits, straight, unlanes
from trainlore.primitives.reparam import turned
from trainlore.primitives.teaching import kl
from trainlore.runs import Run
from trainlore.verbs import Fit, method

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CLIPS = [step / 20 for step in range(4, 21)]  # shares of the whole range that a grid is tried at


def tight(weight: Tensor, form: str, per: str | int) -> Grid:
    """The grid of each lane that moves its weights least, in the power 2.4, of those that hold 20% to 100% of its range."""
    grids = [Grid.of(weight, form, per, clip) for clip in CLIPS]
    gaps = torch.stack([lanes((g.round(weight) - weight).abs() ** 2.4, per).sum(1) for g in grids])
    best, lane = gaps.argmin(0), torch.arange(gaps.shape[1], device=gaps.device)
    return Grid(form, per, *(torch.stack([getattr(g, n) for g in grids])[best, lane] for n in ("scale", "zero")))


class Rounding(nn.Module):
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


class Step(nn.Module):
    """Rounds inputs by a scale that learns; a random half of the values, drawn anew each time, pass as they are."""

    def __init__(self, x: Tensor, bits: int, keep: float, generator: torch.Generator) -> None:
        super().__init__()
        self.bits, self.keep, self.generator = bits, keep, generator
        scale, zero = found(x, f"uint{bits}")
        tries = [scale * clip for clip in CLIPS]
        gaps = torch.stack([(snap(x, f"uint{bits}", s, zero) - x).abs().pow(2.4).mean() for s in tries])
        self.scale = nn.Parameter(tries[int(gaps.argmin())])
        self.register_buffer("zero", zero)

    def forward(self, x: Tensor) -> Tensor:
        steps = x / self.scale
        ints = (straight(steps) + self.zero).clamp(0, 2**self.bits - 1)
        rounded = ((ints - self.zero) * self.scale).to(x.dtype)
        left = torch.rand(x.shape, generator=self.generator).to(x.device) < self.keep
        return torch.where(left, x, rounded)


def corrected(unit: Unit, call: Call, steps: int, lr: float, hold: float) -> Call:
    """The same call with an input moved so that the unit's batch norms read what they counted in training.

    Minimizes the squared distances of their inputs' mean and deviation (for each row, over its places) from the counted
    ones, plus || X' - X ||^2 / `hold`, by Adam. Without batch norms: the call itself.
    """
    norms = [m for m in unit.module.modules() if isinstance(m, NORMS) and m.running_mean is not None]
    if not norms or not steps:
        return call
    args, kwargs = call
    x = args[0].detach()
    moved = x.clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=lr)
    read: dict[nn.Module, Tensor] = {}
    hooks = [m.register_forward_pre_hook(lambda m, args: read.update({m: args[0]})) for m in norms]
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            unit.run(((moved, *args[1:]), kwargs))
            loss = (moved - x).square().sum(1).mean() / hold
            for m, h in read.items():
                places = h.flatten(2) if h.dim() > 2 else h.T[None]  # rows without places are looked at together
                loss = loss + (places.mean(2) - m.running_mean).square().sum(1).mean()
                spread = (places.var(2) + 1e-6).sqrt()
                loss = loss + (spread - (m.running_var + 1e-6).sqrt()).square().sum(1).mean()
            loss.backward()
            optimizer.step()
    for hook in hooks:
        hook.remove()
    return (moved.detach(), *args[1:]), kwargs


@method(
    name="pd_quant",
    title="PD-Quant: rounding by the difference of the predictions",
    paper="arXiv:2212.07048",
    lit="p002",
    code="hustvl/PD-Quant",
    family="compress/quantize",
    year=2022,
    tier="core",
    status="stable",
)
class PDQuant(Fit):
    """Round weights and inputs of a block so that the predictions stay, not only what the block gives.

    ## What it does
    Blocks in order. Weights go W' = s (clip(floor(W / s) + h(V) + z) - z), h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1); what
    layers read is rounded by one learned scale each. Over V and those scales, by Adam:

        KL(p || p') / lam  +  || f(X) - f'(X~) ||^2  +  press * sum 1 - |2h - 1|^b        b: 20 -> 2

    p, p': predictions (at a temperature) of the untouched net and of the net with blocks up to this one rounded and the
    rest not. X: the block's input in the untouched net; X~: a random half of it, the other half from the net rounded so far.
    A random half of what is rounded passes unrounded while learning. Where the block holds batch norms, X is first moved
    until they read the means and deviations counted in training: few rows then stand for all.

    ## Claim
    ImageNet, 2 bits for weights and inputs: ResNet-18 53.1%, ResNet-50 57.0%, RegNetX-600MF 40.9% (71.0, 76.6 and 73.5
    unrounded), above earlier post-training methods.

    ## Cost
    For each block `steps` passes forward and back through the net, and as many through the block; with batch norms
    `correct` more of the block for each batch. Memory: a second net, two sets of activations of one block.

    ## Fields worth tuning
    `steps` (20000 there), `lr_scales`, `lam` and `temperature` (0.1 and 4 for ResNet, RegNet; temperature 1 for MobileNet).

    ## Watch out
    The model keeps its precision and rounds as it goes; it cannot be saved as a plain model. What the head reads is not
    rounded, and the head stays as it is. On digits, an MLP in 2 bits was as good without the prediction difference
    (accuracy 0.878 with it and with `lam` at 1e9, five seeds): the block's own output carried the gain over rounding.

    ## Differs from the paper
    The first layer gets the same bits as the rest (the authors keep first and last at 8). Inputs of layers are rounded
    instead of outputs after their activation, the net's own input among them. Scales start from a search along the
    range, not along range and zero point. The untouched rest of the net runs from the net's input on.

    ## See also
    flexround, gptq, nearest.
    """

    bits_weight: int = 4
    """Bits of a weight, 2 to 8."""
    bits: int = 4
    """Bits of what layers read, 2 to 8."""
    per: str | int = "channel"
    """Who shares a weight scale: tensor, channel, or a group size such as 128."""
    lam: float = 0.1
    """Divides the prediction difference: small makes it count more against the block's own output."""
    temperature: float = 4.0
    """Softens the predictions that are compared."""
    press: float = 0.01
    """Weight of the term that drives every h to 0 or 1, after a first fifth of the steps."""
    keep: float = 0.5
    """Share of values that pass unrounded, and of inputs taken from the untouched net, while learning."""
    correct: int = 500
    """Steps that move a block's input towards what its batch norms counted; 0 leaves it."""
    lr_correct: float = 1e-3
    """Learning rate of those steps."""
    hold: float = 0.02
    """Divides the pull back to the input as it was."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    steps: int = 500
    """Optimizer steps for each block."""
    size: int = 32
    """Rows a step."""
    lr: float = 3e-3
    """Adam's learning rate for the roundings."""
    lr_scales: float = 4e-5
    """Adam's learning rate for the scales of what layers read; it falls to 0 along half a cosine."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to round; all but the output head when empty."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"lam": [0.01, 10.0, "log"], "lr_scales": [0.00001, 0.01, "log"]}
    tiny = {"world": "digits", "steps": 10, "rows": 64}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if model.kind not in ("causal", "masked", "classifier", "tagger"):
            raise Bad(f"a {model.kind} predicts no classes, and this compares predictions: take flexround")
        if self.steps < 1 or self.correct < 0:
            raise Bad(f"steps={self.steps}, correct={self.correct}: give at least 1 and at least 0")
        for name in ("lam", "temperature", "hold"):
            if getattr(self, name) <= 0:
                raise Bad(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.keep < 1:
            raise Bad(f"keep={self.keep} is no share: give 0 (everything is rounded) to below 1")
        limits(self.bits)
        form = integers(self.bits_weight, False)
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "pd_quant")
        before = model.copy()
        before.net.eval()
        with torch.no_grad():
            wanted = [before(batch) for batch in batches]
        for unit in walk(model, layers, batches):
            calls = [
                corrected(unit, seen(before, unit.path, b), self.correct, self.lr_correct, self.hold) for b in batches
            ]
            with torch.no_grad():
                unit.goals = [unit.run(call) for call in calls]
            self._reconstruct(run, model, unit, form, calls, batches, wanted)
        return model

    def _reconstruct(
        self,
        run: Run,
        model: Model,
        unit: Unit,
        form: str,
        calls: list[Call],
        batches: list[Batch],
        wanted: list[Tensor],
    ) -> None:
        """Fit the rounding of the unit's weights and of what its layers read, and write it in."""
        generator = run.rng("pd_quant", "keep", unit.path)
        heard: dict[str, list[Tensor]] = {path: [] for path in unit.layers}
        listen(unit, lambda path, layer, x: heard[path].append(x.float()))
        for path, layer in unit.layers.items():
            read_rounded(layer, Step(torch.cat(heard.pop(path)), self.bits, self.keep, generator))
            grid = tight(weight_of(layer), form, self.per)
            parametrize.register_parametrization(layer, "weight", Rounding(layer, grid))
        rounds = {path: layer.parametrizations.weight[0] for path, layer in unit.layers.items()}
        weights = torch.optim.Adam([r.up for r in rounds.values()], lr=self.lr)
        scales = torch.optim.Adam([layer.reads.scale for layer in unit.layers.values()], lr=self.lr_scales)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(scales, self.steps)
        order = run.numpy("pd_quant", unit.path).integers(len(batches), size=self.steps)
        for step, at in enumerate(order.tolist()):
            with torch.enable_grad():
                weights.zero_grad()
                scales.zero_grad()
                loss = kl(model(batches[at]), wanted[at], self.temperature)
                loss = _real(loss, unit.real[at]).mean() / self.lam + self._gap(unit, calls[at], at, generator)
                if step >= 0.2 * self.steps:
                    b = 2 + 18 * (1 - (step / self.steps - 0.2) / 0.8)
                    loss = loss + self.press * sum((1 - (2 * r.h() - 1).abs() ** b).sum() for r in rounds.values())
                loss.backward()
            weights.step()
            scales.step()
            fall.step()
            for layer in unit.layers.values():
                layer.reads.scale.data.clamp_(min=1e-8)
        for path, layer in unit.layers.items():
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
            layer.weight.requires_grad_(False)
            matrix = weight_of(layer)
            settle(model, path, layer, rounds[path].hard(matrix.shape), rounds[path].grid)
            learned = layer.reads
            read_rounded(layer, Rounder(f"uint{self.bits}", "tensor", learned.scale.detach(), learned.zero))

    def _gap(self, unit: Unit, call: Call, at: int, generator: torch.Generator) -> Tensor:
        """Squared distance of what the unit gives from its goal, summed over channels, a part of its input untouched."""
        (x, *others), kwargs = unit.calls[at]
        kept = torch.rand(x.shape, generator=generator).to(x.device) < self.keep
        gap = (first(unit.run(((torch.where(kept, call[0][0], x), *others), kwargs))) - unit.goals[at]).square()
        return _real(gap.sum(1) if gap.dim() == 4 else gap.sum(-1), unit.real[at]).mean()


def _real(values: Tensor, real: Tensor | None) -> Tensor:
    """Values (B,T) of the tokens that are no padding; others as they are."""
    return values[real] if real is not None and values.shape == real.shape else values
