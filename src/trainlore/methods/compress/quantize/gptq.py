from __future__ import annotations

import torch
from torch import Tensor

from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import batches_of, second_moments, walk
from trainlore.primitives.grids import Grid, free, integers, settle
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.primitives.obs import damped, sweep, upper
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def rounded(weight: Tensor, moments: Tensor, grid: Grid, damp: float = 0.01, sort: bool = False) -> Tensor:
    """Round a weight (out, in) column by column on its grid, the columns to come making up for each: (out, in) float32.

    moments (in, in): X'X / n of what the layer reads. sort: the columns with the largest inputs first.
    """
    h, dead = damped(moments, damp)
    w = weight.float().masked_fill(dead, 0.0)
    order = h.diagonal().argsort(descending=True, stable=True) if sort else torch.arange(len(h), device=h.device)
    scale, zero = (t.expand(*w.shape)[:, order] for t in grid.columns(w.shape[1]))
    done = sweep(w[:, order], upper(h[order][:, order]), lambda j, column: grid.values(column, scale[:, j], zero[:, j]))
    return done[:, order.argsort()]


@method(
    name="gptq",
    title="GPTQ: second-order rounding",
    paper="arXiv:2210.17323",
    code="IST-DASLab/gptq",
    family="compress/quantize",
    year=2022,
    tier="core",
    status="stable",
)
class GPTQ(Fit):
    """Round weights column by column and let the columns still to come make up for what each one lost.

    ## What it does
    For each layer with inputs X, H = X'X / n + damping, U'U = H^-1 (upper triangular), and the grid of round-to-nearest:

        for each input j:   q = round(w_j),   e = (w_j - q) / U_jj,   w_k <- w_k - e U_jk for all k > j

    which is the best answer of the later columns to the move of column j in || dW X ||^2. Blocks of the net are done in
    order, each reading what the quantized ones before it give.

    ## Claim
    LLaMA-7B, perplexity on WikiText-2: 5.68 in 16 bits; at 3 bits a channel 25.54 by nearest and 8.07 by GPTQ, at 4 bits
    6.29 and 6.09.

    ## Cost
    Two forward passes over `rows`; for each layer O(in^3 + out in^2) operations and a matrix (in, in) in float32. Memory:
    the activations of `rows` at one block and the moments of its layers.

    ## Fields worth tuning
    `per`: groups of 128; `rows`; `sort` where a few inputs are far larger than the rest.

    ## Watch out
    It fits the calibration rows: give rows of the kind the model will read. Inputs that are always 0 there lose their weights.

    ## Differs from the paper
    Groups keep the grid they have before the sweep (the authors' `static-groups`), so that `sort` needs no reordering at
    inference. All layers of a block are calibrated on the block as it was, not one after the other (`true-sequential`).

    ## See also
    nearest, awq, flexround; sparsegpt, which prunes by the same sweep.
    """

    bits: int = 4
    """Bits of a weight, 2 to 8."""
    per: str | int = "channel"
    """Who shares a scale: tensor, channel, or a group size such as 128."""
    symmetric: bool = False
    """A grid around 0, without a zero point."""
    sort: bool = False
    """Round the columns with the largest inputs first."""
    damp: float = 0.01
    """Share of its mean that is added to the diagonal of H."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to round; all but the output head when empty."""
    tolerance: float = 0.35
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"damp": [0.001, 0.1, "log"]}
    tiny = {"world": "text", "bits": 4, "rows": 16}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        form = integers(self.bits, self.symmetric)
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        for unit in walk(model, layers, batches_of(run, model, data, self.rows, self.size, "gptq")):
            for path, moments in second_moments(unit).items():
                weight = weight_of(layers[path])
                grid = Grid.of(weight, form, self.per)
                settle(model, path, layers[path], rounded(weight, moments, grid, self.damp, self.sort), grid)
        return model
