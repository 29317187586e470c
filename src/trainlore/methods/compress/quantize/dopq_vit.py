from __future__ import annotations

from math import tan

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.activations import Rounder, found, passed, read_rounded
from trainlore.primitives.anatomy import Feed, feeds, rescale
from trainlore.primitives.attending import attend_through, opened, overheard
from trainlore.primitives.blocks import biased, inside, shift
from trainlore.primitives.calibrating import Unit, batches_of, walk
from trainlore.primitives.grids import Grid, free, integers, settle
from trainlore.primitives.masks import plain, weight_of
from trainlore.runs import Run
from trainlore.verbs import Fit, method

WARPS = [step / 10 for step in range(1, 16)]  # almost even steps ... almost all of them near the largest value


def tan_rounded(x: Tensor, peak: Tensor | float, warp: float, bits: int) -> Tensor:
    """The nearest, seen through tan(warp x), of 2^bits values from 0 to `peak` that lie the denser the larger: shape of x."""
    most = 2**bits - 1
    code = ((warp * (x / peak).clamp(0, 1)).tan() / tan(warp) * most).round()
    return (code * tan(warp) / most).atan() / warp * peak


def common(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the ranges of the channels (in,): scale and zero point of each, the median scale, the mean zero point (whole).

    A channel that hardly ever moves gets the median scale.
    """
    scale = (high - low) / (2**bits - 1)
    moves = scale > 1e-4 * scale.max()
    middle = scale[moves].median() if moves.any() else scale.new_ones(())
    scale = torch.where(moves, scale, middle)
    zero = (-low / scale).round()
    return scale, zero, middle, zero.mean().round()


@torch.no_grad()
def reparametrize(net: nn.Module, feed: Feed, x: Tensor, bits: int) -> Rounder:
    """Fold the channels' own scales and zero points of what a norm gives (n, in) into norm and readers.

    The model stays the same; what the norm gives now lies on one grid, which is returned. A norm or a reader without a
    bias: scales alone, around 0.
    """
    low, high = x.aminmax(dim=0)
    even = not biased(net, feed)
    held = (torch.zeros_like(high), torch.maximum(-low, high), bits - 1) if even else (low, high, bits)
    scale, zeros, middle, zero = common(*held)
    rescale(net, feed, scale / middle)
    if not even:
        shift(net, feed, (zero - zeros) * middle)
    return Rounder(integers(bits, even), "tensor", middle.view(1), zero.view(1))


class Tan(nn.Module):
    """Rounds probabilities to values that lie the denser the larger. Gradients go straight through."""

    def __init__(self, peak: Tensor, warp: float, bits: int) -> None:
        super().__init__()
        self.warp, self.bits = warp, bits
        self.register_buffer("peak", peak.view(1))

    def forward(self, x: Tensor) -> Tensor:
        return passed(x, tan_rounded(x.detach().float(), self.peak, self.warp, self.bits))

    @staticmethod
    def of(x: Tensor, bits: int) -> Tan:
        """With the warp that moves these values least."""
        peak = x.max().clamp(min=torch.finfo(torch.float32).tiny)
        gaps = torch.stack([(tan_rounded(x, peak, warp, bits) - x).square().mean() for warp in WARPS])
        return Tan(peak, WARPS[int(gaps.argmin())], bits)


@method(
    name="dopq_vit",
    title="DopQ-ViT: tangent steps and median scales",
    paper="arXiv:2408.03291",
    lit="p005",
    family="compress/quantize",
    year=2024,
    tier="modality",
    status="draft",
)
class DopQViT(Fit):
    """Round a vision transformer with finer steps for large probabilities and one grid for all channels of a norm.

    ## What it does
    For what a norm gives, with the channels' own scales s_c and zero points z_c (from the smallest and largest value):

        s = median s_c,  z = mean z_c                                  one grid for the layer
        r_c = s_c / s,   d_c = s (z - z_c)
        norm: weight / r, bias / r - d;    readers: W' = W r, bias' = bias + W' d       the same model

    so that every channel uses the whole of the layer's grid. After softmax, with the warp a in (0, pi/2) that moves the
    probabilities least:

        q = round((2^b - 1) tan(a x / max) / tan(a)),    x^ = max atan(q tan(a) / (2^b - 1)) / a

    Other inputs get one scale and zero point a tensor, weights one an output channel.

    ## Claim
    ImageNet at W4A4 and W6A6, ViT, DeiT and Swin, and detection on COCO: above earlier post-training methods. Tangent
    steps keep the probabilities near 1; the median keeps outlying channels from setting the layer's scale, as the mean
    of RepQ-ViT lets them.

    ## Cost
    Two passes over `rows` a block. Memory: what the layers of one block read.

    ## Fields worth tuning
    `bits_weight`, `bits`.

    ## Watch out
    With one weight scale an output channel the layer's scale s cancels: median, mean or any other give the same model up
    to float rounding (tested). What counts is that scales and zero points are folded at all. The model keeps its precision
    and rounds as it goes; it cannot be saved as a plain model. Patches and head stay as they are.

    ## Differs from the paper
    Its text was in reach only in part: the tangent's exact form and the search of its warp are ours, built on what it
    says of it (dense near 1). The folding is that of RepQ-ViT's code, with the median. Ranges are smallest and largest
    values, without percentiles. Norms without a bias (Llama) fold scales alone, on a grid around 0.

    ## See also
    mptq_vit, pd_quant, nearest.
    """

    bits_weight: int = 4
    """Bits of a weight, 2 to 8."""
    bits: int = 4
    """Bits of what layers read and of probabilities, 2 to 8."""
    rows: int = 32
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    tiny = {"world": "text", "bits": 6, "rows": 16}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.bits not in range(3, 9):
            raise Bad(f"bits={self.bits} of activations: give a whole number from 3 to 8")
        form = integers(self.bits_weight, False)
        layers = plain(inside(model))
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "dopq_vit")
        attention = opened(model)
        for unit in walk(model, layers, batches):
            self._round(model, unit, attention[unit.path], form)
        return model

    def _round(self, model: Model, unit: Unit, attention: str, form: str) -> None:
        """Round what a block's layers read, its probabilities, and the layers' weights."""
        heard, shares = overheard(model, unit, attention)
        for path, layer in unit.layers.items():
            read_rounded(layer, Rounder(f"uint{self.bits}", "tensor", *found(heard[path], f"uint{self.bits}")))
        for feed in feeds(model):
            if feed.norm and feed.readers[0] in unit.layers:
                grid = reparametrize(model.net, feed, heard[feed.readers[0]], self.bits)
                for path in feed.readers:
                    read_rounded(unit.layers[path], grid)
        for path, layer in unit.layers.items():
            fit = Grid.of(weight_of(layer), form, "channel")
            settle(model, path, layer, fit.round(weight_of(layer)), fit)
        attend_through(model, attention, Tan.of(shares, self.bits))
