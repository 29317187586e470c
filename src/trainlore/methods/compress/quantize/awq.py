from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.anatomy import Feed, bodies, feeds, rescale
from trainlore.primitives.calibrating import Unit, batches_of, listen, second_moments, walk
from trainlore.primitives.grids import Grid, free, integers, settle
from trainlore.primitives.masks import matrices, plain, weight_of, write
from trainlore.primitives.ranges import clipped
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def scale_of(mean: Tensor, ratio: float) -> Tensor:
    """s = mean^ratio (channels,), at least 1e-4, divided by sqrt(max s * min s): ratio 0 changes nothing."""
    scale = mean.float().pow(ratio).clamp(min=1e-4)
    return scale / (scale.max() * scale.min()).sqrt()


@method(
    name="awq",
    title="AWQ: activation-aware weight quantization",
    paper="arXiv:2306.00978",
    code="mit-han-lab/llm-awq",
    family="compress/quantize",
    year=2023,
    tier="llm",
    status="stable",
)
class AWQ(Fit):
    """Scale up the inputs that carry most before their weights are rounded, and scale them down where they are made.

    ## What it does
    Where layers W read exactly what a norm (or another layer) gives, a scale a channel can move from one to the other.
    For each such place, with x its channels over the calibration rows:

        s = mean|x|^r, divided by sqrt(max s * min s),      r = 0, 1/n, ..., (n - 1)/n
        keep the r for which the module around W gives least || f(x; round(W diag(s)) diag(1/s)) - f(x; W) ||^2

    then source / s and W * s are written in. Last, each lane's range is narrowed to the max|w| * (1 - i/20), i < 10, that
    costs its own output least (not for queries and keys), and all weights go to the nearest value of their grid.

    ## Claim
    Keeping 1% of the weights, those of the largest inputs, takes away most of the error of rounding, and scaling them up does
    as well without two precisions. Language modelling and domain tests come out above earlier work at 4 and 3 bits, the first
    time for multi-modal models too; nothing is fitted to the calibration rows, so that other domains keep their quality.

    ## Cost
    `ratios` passes over `rows` through the attention and the neurons of each block. Memory: what these are called
    with, for one block, and the moments (in, in) of its layers.

    ## Fields worth tuning
    `per`; `clip` at 2 or 3 bits.

    ## Watch out
    Norms change too: the result cannot be compared with the old model weight by weight. Layers behind an
    activation are only clipped and rounded. Families that are not known part by part are refused. A lane is clipped
    for its own output alone: on the small text world that helped whole channels, and in groups of 16 it hurt.

    ## Differs from the paper
    The clipping error is that of all tokens, by their second moment, not of 512 of them. Ranges always hold 0. Sources are
    norms, values and the passed-on half of gated neurons; the authors also put scales behind activations.

    ## See also
    nearest, gptq, flexround.
    """

    bits: int = 4
    """Bits of a weight, 2 to 8."""
    per: str | int = 128
    """Who shares a scale of the grid: tensor, channel, or a group size such as 128."""
    symmetric: bool = False
    """A grid around 0, without a zero point."""
    ratios: int = 20
    """How many powers of the mean input are tried."""
    clip: bool = True
    """Whether ranges are narrowed as well."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to round; all but the output head when empty."""
    tolerance: float = 0.35
    """Relative distance of the logits beyond which the step fails."""

    tiny = {"world": "text", "bits": 4, "rows": 16, "ratios": 4}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.ratios < 1:
            raise Bad(f"ratios={self.ratios} must be at least 1 (1 tries only the scale that changes nothing)")
        form = integers(self.bits, self.symmetric)
        layers = plain(matrices(model.net, self.targets))
        places = [feed for feed in feeds(model) if any(path in layers for path in feed.readers)]
        ends = {p for f in places for p in (*f.readers, *(() if f.norm else (f.source,)))}
        free(model, layers | plain({path: model.net.get_submodule(path) for path in ends}))
        asked = {path for body in bodies(model) for path in body.heads_in[:2]}  # queries and keys, or all where fused
        grids: dict[str, Grid] = {}
        for unit in walk(model, layers, batches_of(run, model, data, self.rows, self.size, "awq")):
            here = [feed for feed in places if feed.readers[0].startswith(f"{unit.path}.")]
            for feed, scale in [(feed, self._search(model, unit, feed, form)) for feed in here]:
                rescale(model.net, feed, scale)
            moments = second_moments(unit) if self.clip and not unit.layers.keys() <= asked else {}
            for path, layer in unit.layers.items():
                weight = weight_of(layer).float()
                held = clipped(weight, moments[path], form, self.per) if path in moments.keys() - asked else weight
                grids[path] = Grid.of(held, form, self.per)
        for path, grid in grids.items():  # last: every block was searched on what the unrounded net gives
            settle(model, path, layers[path], grid.round(weight_of(layers[path])), grid)
        return model

    def _search(self, model: Model, unit: Unit, feed: Feed, form: str) -> Tensor:
        """The scale (channels,) of the ratio that moves the outputs of what reads it least."""
        net, readers = model.net, {path: model.net.get_submodule(path) for path in feed.readers}
        around = feed.readers[0].rpartition(".")[0] if feed.norm else feed.readers[0]
        inside = Unit(around, net.get_submodule(around), readers, [], unit.real)

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args and "hidden_states" in kwargs:  # what comes first is what a pass is counted by
                args, kwargs = (kwargs["hidden_states"],), {k: v for k, v in kwargs.items() if k != "hidden_states"}
            inside.calls.append((args, kwargs))

        hook = inside.module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            for at in range(len(unit.calls)):
                unit(at)
        finally:
            hook.remove()
        inside.goals = [inside(at).detach() for at in range(len(inside.calls))]
        total, count = 0.0, 0

        def add(path: str, layer: nn.Module, x: Tensor) -> None:
            nonlocal total, count
            if path == feed.readers[0]:
                total, count = total + x.float().abs().sum(0), count + len(x)

        listen(inside, add)
        mean = torch.as_tensor(total) / max(1, count)
        kept = {path: weight_of(layer).clone() for path, layer in readers.items()}
        best, least = torch.ones_like(mean), inf
        for r in range(self.ratios):
            scale = scale_of(mean, r / self.ratios)
            for path, layer in readers.items():
                if path in unit.layers:
                    up = kept[path].float() * scale
                    write(layer, Grid.of(up, form, self.per).round(up) / scale)
            error = sum(float(inside.error(at)) for at in range(len(inside.calls)))
            if error < least:
                best, least = scale, error
        for path, layer in readers.items():
            write(layer, kept[path])
        return best
