from __future__ import annotations

import torch

from trainlore.nouns import Model
from trainlore.primitives.grids import Grid, free, integers, settle
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="nearest",
    title="Round-to-nearest quantization",
    family="compress/quantize",
    year=2017,
    tier="core",
    status="stable",
)
class Nearest(Shape):
    """Round every weight to the nearest value that a few bits can hold.

    ## What it does
    For each lane (a tensor, an output channel, or a run of inputs of one):

        symmetric:  scale = 2 max|w| / (2^bits - 1),           w <- scale * clip(round(w / scale), -2^(bits-1), 2^(bits-1) - 1)
        else:       scale = (max w - min w) / (2^bits - 1), z = round(-min w / scale),
                    w <- scale * (clip(round(w / scale) + z, 0, 2^bits - 1) - z)

    The range always holds 0. The layers hold the rounded values in the dtype they had; the model remembers
    their grids, and an export packs them.

    ## Claim
    The rival of every quantizer: no data, no training. 8 bits a channel cost next to nothing; below 4 it breaks.

    ## Cost
    One pass over the weights.

    ## Fields worth tuning
    `per`: groups of 128 or 64 instead of channels, at one scale more each.

    ## Watch out
    Activations stay as they are. One outlier stretches the grid of its whole lane.

    ## See also
    gptq, awq, flexround.
    """

    bits: int = 4
    """Bits of a weight, 2 to 8."""
    per: str | int = "channel"
    """Who shares a scale: tensor, channel, or a group size such as 128."""
    symmetric: bool = False
    """A grid around 0, without a zero point."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to round; all but the output head when empty."""
    tolerance: float = 0.35
    """Relative distance of the logits beyond which the step fails."""

    tiny = {"world": "text", "bits": 4}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model) -> Model:
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        for path, layer in layers.items():
            grid = Grid.of(weight_of(layer), integers(self.bits, self.symmetric), self.per)
            settle(model, path, layer, grid.round(weight_of(layer)), grid)
        return model
