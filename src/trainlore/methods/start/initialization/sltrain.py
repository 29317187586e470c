from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.reparam import Written, layers, replace, reshaped, turned
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="sltrain",
    title="SLTrain: sparse plus low-rank pretraining",
    paper="arXiv:2406.02214",
    lit="p283",
    family="start/initialization",
    year=2024,
    tier="core",
    status="stable",
    code="andyjm3/SLTrain",
)
class SLTrain(Shape):
    """Pretrain every linear weight as a low-rank product plus values on a fixed random support.

    ## What it does
    Replaces the weights W (out, in) of linear layers, before pretraining, by

        W = alpha / rank * B A + S,      B (out, rank) = 0,  A (rank, in) uniform in +-1/sqrt(in),
        S zero but for int(density * out * in) places drawn once, where values uniform in +-1/sqrt(in) are

    Only B, A and the values in S are trained. W is written out for each product and again in the backward pass, and not
    kept in between. `fold` turns the result into plain weights.

    ## Claim
    Llama 60M to 7B on C4: perplexity close to full-rank training and clearly below pure low-rank training, at about the
    memory of the latter; with 8-bit and per-layer updates up to 73% less memory for 7B.

    ## Cost
    rank * (out + in) + density * out * in trained numbers a layer instead of out * in. Each pass writes W out twice.

    ## Fields worth tuning
    `rank` (the authors: 128 at 60M, 512 at 1B), then `density` (0.03 throughout), then `alpha` (32 at 60M, 8 at 1B).

    ## Watch out
    The weights the model had are thrown away: this is for pretraining, not for adapting. The learning rate wants to be
    larger than full-rank training's (the authors: 0.003 at every size). With `density` 0 a transformer never learns: all
    products are zero at first, and with them the gradients of B. A model in this form cannot be saved as a Hugging Face
    folder: `fold` it first, after which every weight is trained in full.

    ## Differs from the paper
    Biases stay as they were made; the authors draw them anew. Their products and gradients are a custom autograd function,
    ours are recomputed by checkpointing, which gives the same gradients.

    ## See also
    `fold`, `lora`
    """

    rank: int = 128
    """Rank of the dense part."""
    density: float = 0.03
    """Share of the places of a weight that also have a value of their own."""
    alpha: float = 32.0
    """Scale of the dense part; it is divided by the rank."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the linear layers to replace; all but the output head when empty."""

    tiny = {"world": "text", "rank": 8, "alpha": 8.0}

    def __call__(self, run: Run, model: Model) -> Model:
        if self.rank < 1:
            raise Bad(f"rank must be 1 or more, not {self.rank}")
        if not 0 <= self.density <= 1:
            raise Bad(f"density is a share of the weights, from 0 to 1, not {self.density}")
        for path, layer in layers(model, self.targets).items():
            weight = layer.weight.T if turned(layer) else layer.weight
            make = SparseLowRank(weight, self.rank, self.density, self.alpha, run.rng("sltrain", path))
            replace(model.net, path, Written(layer, make))
        return reshaped(model)


def sparse_low_rank(b: Tensor, a: Tensor, values: Tensor, where: Tensor, scale: float) -> Tensor:
    """The weight (out, in) = scale * b (out, rank) @ a (rank, in), plus values (n,) at the flat places where (n,) int64."""
    dense = (scale * b) @ a
    return dense.flatten().index_add(0, where, values.to(dense.dtype)).view(dense.shape)


def support(size: int, density: float, generator: torch.Generator) -> Tensor:
    """int(density * size) different places of 0 .. size-1, uniformly at random, ascending: int64 (n,)."""
    return torch.randperm(size, generator=generator)[: int(density * size)].sort().values


class SparseLowRank(nn.Module):
    """Says the weight of a `Written` layer."""

    def __init__(self, like: Tensor, rank: int, density: float, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        rows, cols = like.shape

        def uniform(*shape: int) -> nn.Parameter:  # Kaiming's with a = sqrt(5) has the same bound as the sparse values
            return nn.Parameter(((2 * torch.rand(*shape, generator=generator) - 1) / cols**0.5).to(like))

        self.a, self.b = uniform(rank, cols), nn.Parameter(torch.zeros(rows, rank).to(like))
        self.register_buffer("where", support(rows * cols, density, generator).to(like.device))
        self.values, self.scale = uniform(len(self.where)), alpha / rank

    def forward(self) -> Tensor:
        return sparse_low_rank(self.b, self.a, self.values, self.where, self.scale)
