from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.anatomy import feeds, rescale
from trainlore.primitives.calibrating import batches_of, second_moments, walk
from trainlore.primitives.masks import matrices, plain, weight_of, write
from trainlore.primitives.reparam import freeze, layers, put_beside, reshaped
from trainlore.runs import Run
from trainlore.verbs import Fit, method

FLOOR = 1e-12  # of the largest eigenvalue: what is less counts as that, so that every direction has an inverse


def factors(lost: Tensor, moments: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B (out, r) and A (r, in), float64, with the least tr((E - BA) H (E - BA)') of all of rank r.

    lost (out, in): E = W - W_c. moments (in, in): H = X'X / n. r is at most the smaller side of E.
    """
    values, vectors = torch.linalg.eigh(moments.double())
    least = FLOOR * float(values[-1])
    root = values.clamp(min=least if least > 0 else 1.0).sqrt()
    u, s, v = torch.linalg.svd(lost.double() @ (vectors * root), full_matrices=False)
    size = s[:rank].sqrt()
    return u[:, :rank] * size, size[:, None] * ((v[:rank] / root) @ vectors.T)


def aligned(model: Model, whole: Model) -> None:
    """Move scales in `whole` to where they are in the compressed model (awq): its outputs stay, its weights are like again.

    Of a norm the scale is known; of a layer that was rounded since, it is the best that its rows tell. Any would keep the
    outputs: a better one leaves less to make up for.
    """
    for feed in feeds(model):
        there, here = (m.net.get_submodule(feed.source) for m in (whole, model))
        if feed.norm:
            scale = there.weight.float() / here.weight.float()
        else:
            old, new = weight_of(there).float(), weight_of(here).float()
            scale = old.square().sum(1) / (old * new).sum(1)
        rescale(whole.net, feed, scale.where(scale.isfinite() & (scale > 0), torch.ones_like(scale)))


@method(
    name="eora",
    title="EoRA: eigenspace low-rank approximation",
    paper="arXiv:2410.21271",
    lit="p121",
    code="NVlabs/EoRA",
    family="compress/quantize",
    year=2024,
    tier="core",
    status="stable",
)
class EoRA(Fit):
    """Put two thin matrices beside each compressed weight that make up for what its outputs lost.

    ## What it does
    For each linear layer with the weight W before compression and W_c after, and X what it reads:

        X'X / n = Q L Q',   (W - W_c) Q L^1/2 = U S V'   (the first `rank` singular values)
        B = U S^1/2,        A = S^1/2 V' L^-1/2 Q',      y = (W_c + B A) x

    which is the least || (W - W_c - B A) X ||^2 of all of that rank, where a plain decomposition of W - W_c takes all inputs
    for alike. Blocks are done in order, each reading what the compensated ones before it give. W_c stays as it was, in its
    few bits or with its zeros; B and A are all that is trained afterwards.

    ## Claim
    LLaMA3-8B at 3 bits: 10.84 points more on ARC-Challenge, 6.74 on MathQA and 11.45 on GSM8K than without, always above
    plain decomposition of the same rank; no gradient is taken.

    ## Cost
    Two forward passes over `rows`; a decomposition of (in, in) and one of (out, in) a layer, in float64. Memory: a copy
    of the model before compression. Afterwards rank * (in + out) more weights a layer.

    ## Fields worth tuning
    `rank` (512 in the authors' script); calibration rows of the task that the model is for.

    ## Watch out
    The weight is compared entry by entry: not where whole channels were taken out. Where scales were moved between layers
    (awq), they are moved in `before` too, in families that are known part by part.
    `fold` adds B A to the weight and ends its few bits. The layers write W_c + B A out at every pass.

    ## Differs from the paper
    Eigenvalues below a 1e-12th of the largest are lifted to it, not only negative ones. Padding is left out of X. B and A
    are not quantized.

    ## See also
    gptq, nearest, lora, fold; zeroquant_fp, whose LoRC is the plain decomposition.
    """

    before: Model
    """The model before it was compressed."""
    rank: int = 64
    """Columns of B; at most the smaller side of a weight is used."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the linear layers to compensate; all but the output head when empty."""

    ranges = {"rank": [8, 512, "log"]}
    tiny = {"world": "text", "before": "$teacher", "rank": 4, "rows": 16}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.rank < 1:
            raise Bad(f"rank={self.rank} must be at least 1")
        whole = self.before.copy()
        chosen = plain(layers(model, self.targets))
        self._compare(model, whole, chosen)
        lost = {p: layer for p, layer in chosen.items() if not torch.equal(weight_of(layer), weight_of(_at(whole, p)))}
        if not lost:
            raise Bad("before: its layers are those of the model, nothing was lost: give the model before compression")
        found = {}
        for unit in walk(
            whole, {p: _at(whole, p) for p in lost}, batches_of(run, model, data, self.rows, self.size, "eora")
        ):
            for path, moments in second_moments(unit).items():
                own, original = weight_of(lost[path]), unit.layers[path]
                up, down = factors(weight_of(original).double() - own.double(), moments, self.rank)
                found[path] = up.to(own.dtype), down.to(own.dtype)
                write(original, own + found[path][0] @ found[path][1])
        freeze(model.net)
        for path, (up, down) in found.items():
            put_beside(model.net, path, up, down)
        return reshaped(model)

    def _compare(self, model: Model, whole: Model, chosen: dict[str, nn.Module]) -> None:
        """Refuse what is not the model before compression; move scales in it to where compression moved them."""
        here, there = (dict(m.net.named_parameters()) for m in (model, whole))
        for name, weight in here.items():
            if name not in there or there[name].shape != weight.shape:
                raise Bad(f"before: {name} is not in it, or not of that shape: give the model as it was compressed")
        own = {f"{path}.{part}" for path in (*chosen, *matrices(model.net)) for part in ("weight", "bias")}
        others = [name for name in here if name not in own]
        moved = [name for name in others if not torch.equal(here[name], there[name])]
        if not moved or len(moved) == len(others):
            return
        aligned(model, whole)
        if left := [name for name in moved if not torch.allclose(here[name], there[name], rtol=1e-3)]:
            raise Bad(f"before: {left[0]} is not what it is in the model, which was changed by more than compression")


def _at(model: Model, path: str) -> nn.Module:
    return model.net.get_submodule(path)
