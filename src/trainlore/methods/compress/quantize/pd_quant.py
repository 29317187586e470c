from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives.activations import Rounder, read_rounded
from trainlore.primitives.calibrating import Call, Unit, batches_of, inputs, seen, unpadded, walk
from trainlore.primitives.grids import free, integers, settle
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.primitives.normed import corrected
from trainlore.primitives.numbers import limits
from trainlore.primitives.ranges import tight
from trainlore.primitives.rounding import Partly, Raised, put_on, reconstruct, take_off
from trainlore.primitives.teaching import kl
from trainlore.runs import Run
from trainlore.verbs import Fit, method


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
        limits(self.bits), limits(self.bits_weight)
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "pd_quant")
        before = model.copy()
        before.net.eval()
        with torch.no_grad():
            wanted = [before(batch) for batch in batches]
        for unit in walk(model, layers, batches):
            how = self.correct, self.lr_correct, self.hold
            calls = [corrected(unit, seen(before, unit.path, batch), *how) for batch in batches]
            with torch.no_grad():
                unit.goals = [unit.run(call) for call in calls]
            self._reconstruct(run, model, unit, calls, batches, wanted)
        return model

    def _reconstruct(
        self, run: Run, model: Model, unit: Unit, calls: list[Call], batches: list[Batch], wanted: list[Tensor]
    ) -> None:
        """Fit the rounding of the unit's weights and of what its layers read, and write it in."""
        generator, form = run.rng("pd_quant", "keep", unit.path), integers(self.bits_weight, False)
        reads = {path: Partly(x, self.bits, self.keep, generator) for path, x in inputs(unit).items()}
        for path, layer in unit.layers.items():
            read_rounded(layer, reads[path])
        rounds = put_on(unit.layers, lambda path, layer: Raised(layer, tight(weight_of(layer), form, self.per)))
        weights = torch.optim.Adam([r.up for r in rounds.values()], lr=self.lr)
        scales = torch.optim.Adam([r.scale for r in reads.values()], lr=self.lr_scales)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(scales, self.steps)

        def loss(step: int, at: int) -> Tensor:
            told = unpadded(kl(model(batches[at]), wanted[at], self.temperature), unit.real[at]).mean()
            (x, *others), kwargs = unit.calls[at]
            kept = torch.rand(x.shape, generator=generator).to(x.device) < self.keep
            gap = (unit.run(((torch.where(kept, calls[at][0][0], x), *others), kwargs)) - unit.goals[at]).square()
            total = told / self.lam + unpadded(gap.sum(1) if gap.dim() == 4 else gap.sum(-1), unit.real[at]).mean()
            if step >= 0.2 * self.steps:
                b = 2 + 18 * (1 - (step / self.steps - 0.2) / 0.8)
                total = total + self.press * sum((1 - (2 * r.h() - 1).abs() ** b).sum() for r in rounds.values())
            return total

        def hold(step: int) -> None:
            for one in reads.values():
                one.scale.data.clamp_(min=1e-8)

        reconstruct(run, "pd_quant", unit, self.steps, [weights, scales], [fall], loss, hold)
        take_off(unit.layers)
        for path, layer in unit.layers.items():
            settle(model, path, layer, rounds[path].hard(weight_of(layer).shape), rounds[path].grid)
            read_rounded(layer, Rounder(f"uint{self.bits}", "tensor", reads[path].scale.detach(), reads[path].zero))
