from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.activations import Rounder, read_rounded
from trainlore.primitives.calibrating import batches_of, second_moments, walk
from trainlore.primitives.grids import FLOATS, Grid, free, settle
from trainlore.primitives.masks import CONVOLUTIONS, matrices, plain, weight_of, write
from trainlore.primitives.obs import damped, sweep, upper
from trainlore.primitives.reparam import put_beside, reshaped
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def constrained(scale: Tensor, constraint: str, out: int) -> Tensor:
    """Scales (lanes, 1) of a weight with `out` rows that differ by powers of two: "m1" all, "m2" those of one row.

    m1: 2^ceil(log2 S).   m2: S_max / 2^floor(log2(S_max / S)), S_max the largest of the row. Either way no scale shrinks.
    """
    if constraint == "m1":
        mantissa, exponent = torch.frexp(scale)  # scale = mantissa 2^exponent, 1/2 <= mantissa < 1: no logarithm errs
        return torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
    own = scale.view(-1, scale.numel() // out) if scale.numel() >= out else scale
    most = own.amax(1, keepdim=True)
    return torch.ldexp(most.expand_as(own), 1 - torch.frexp(most / own).exponent).view_as(scale)


def low_rank(lost: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U S^1/2 (out, r) and S^1/2 V' (r, in): the nearest matrix of rank r to `lost` (out, in), shared between two."""
    u, s, v = torch.linalg.svd(lost.float(), full_matrices=False)
    size = s[:rank].sqrt()
    return u[:, :rank] * size, size[:, None] * v[:rank]


@method(
    name="zeroquant_fp",
    title="ZeroQuant-FP: weights and activations in small floats",
    paper="arXiv:2307.09782",
    lit="p004",
    family="compress/quantize",
    year=2023,
    tier="core",
    status="stable",
)
class ZeroQuantFP(Fit):
    """Keep weights in floats of 4 bits and what layers read in floats of 8, with scales that differ by shifts alone.

    ## What it does
    Weights in groups, each with the scale S = max|w| / largest value of the format (e2m1: 6, e3m0: 16), rounded column by
    column, the columns to come making up for each (as in gptq). Inputs of the layers go to e4m3 at each token's own scale.

        constraint m1:  S <- 2^ceil(log2 S)
        constraint m2:  S <- S_max / 2^floor(log2(S_max / S)),   S_max the largest scale of the row
        LoRC:           W - W_q = U S V',   y = W_q x + U_r S_r^1/2 (S_r^1/2 V_r' x)

    so that weights of a row can be cast to the format of the activations by shifts (m1, m2), and the `rank` largest
    directions of the error are kept beside the weight.

    ## Claim
    LLaMA and OPT, 1.3B to 30B, perplexity on WikiText-2, PTB and C4: activations in FP8 beat INT8, the more the larger the
    model; weights in FP4 match or beat INT4; the constraints cost next to nothing; LoRC helps small models most.

    ## Cost
    That of gptq: two forward passes over `rows`, O(in^3 + out in^2) a layer and a matrix (in, in). `rank`: a
    decomposition of (out, in) a layer and rank * (in + out) more weights.

    ## Fields worth tuning
    `form`, `per`, `rank`.

    ## Watch out
    Whole numbers are finer than floats where there are no outliers: on the small text world int4 and int8 by the same sweep
    came nearer than e2m1 and e4m3, and e3m0 stayed behind all. Larger scales (m1) cost more there than the paper finds.
    `fold` after LoRC ends both the few bits and the rounding of inputs.

    ## Differs from the paper
    Only its abstract and reports of it could be read: the way m2 rounds is the one that cuts no weight off (rounded up
    instead, scales shrink, and the outputs went seven times as far here). The two matrices of LoRC keep the weight's
    precision. Moments are taken of rounded inputs.

    ## See also
    gptq, nearest, eora.
    """

    form: str = "e2m1"
    """Format of the weights: e2m1, e3m0, e4m3, e5m2, or whole numbers around 0, int2 to int8."""
    per: str | int = 128
    """Who shares a scale: tensor, channel, or a group size such as 128."""
    constraint: str = ""
    """What scales may be: m1 (powers of two), m2 (one of its row times powers of two), or anything when empty."""
    reads: str = "e4m3"
    """Format of what the layers read, a scale a token; as it is when empty."""
    rank: int = 0
    """Rank of what makes up for the error of each linear layer (LoRC); 0 is none, 8 is common."""
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

    ranges = {"form": ["e2m1", "e3m0"], "damp": [0.001, 0.1, "log"]}
    tiny = {"world": "text", "rows": 16, "per": 16, "constraint": "m2", "rank": 2}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.form not in FLOATS and not self.form.startswith("int"):
            raise Bad(f"form={self.form!r} is not a format around 0: give one of {', '.join(FLOATS)} or int2 to int8")
        if self.constraint not in ("", "m1", "m2"):
            raise Bad(f"constraint={self.constraint!r} is not known: give m1, m2, or nothing")
        if self.rank < 0:
            raise Bad(f"rank={self.rank} must be at least 0 (0 is none)")
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        beside: dict[str, tuple[Grid, Tensor, Tensor]] = {}
        for unit in walk(model, layers, batches_of(run, model, data, self.rows, self.size, "zeroquant_fp")):
            for layer in unit.layers.values() if self.reads else ():
                read_rounded(layer, Rounder(self.reads, "tensor" if isinstance(layer, CONVOLUTIONS) else "token"))
            for path, moments in second_moments(unit).items():
                layer = layers[path]
                weight, grid, q = self._rounded(weight_of(layer), moments)
                if self.rank and not isinstance(layer, CONVOLUTIONS):
                    beside[path] = grid, *low_rank(weight - q, self.rank)
                    write(layer, q + beside[path][1] @ beside[path][2])  # what the blocks to come read
                else:
                    settle(model, path, layer, q, grid)
        for path, (grid, up, down) in beside.items():
            settle(model, path, layers[path], grid.round(weight_of(layers[path]).float() - up @ down), grid)
            put_beside(model.net, path, up, down)
        return reshaped(model) if beside else model

    def _rounded(self, weight: Tensor, moments: Tensor) -> tuple[Tensor, Grid, Tensor]:
        """The weight (out, in) without those of inputs that are never on, its grid, and it on the grid."""
        h, dead = damped(moments, self.damp)
        grid = Grid.of(weight, self.form, self.per)
        if self.constraint:
            grid = replace(grid, scale=constrained(grid.scale, self.constraint, len(weight)))
        w = weight.float().masked_fill(dead, 0.0)
        scale, zero = (t.expand(*w.shape) for t in grid.columns(w.shape[1]))
        return w, grid, sweep(w, upper(h), lambda j, column: grid.values(column, scale[:, j], zero[:, j]))
