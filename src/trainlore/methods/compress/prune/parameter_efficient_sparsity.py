from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.primitives.masks import cubic, matrices, plain, share, top, weight_of
from trainlore.primitives.reparam import freeze, turned
from trainlore.verbs import Part, method


def importance(weight: Tensor, low: Tensor, row: Tensor, column: Tensor, alpha1: float, alpha2: float) -> Tensor:
    """|W| + alpha1 * low + alpha2 * (row 1' + 1 column'): weight, low (out, in), row (out,), column (in,) -> (out, in)."""
    return weight.abs() + alpha1 * low + alpha2 * (row[:, None] + column[None])


class Sparse(nn.Module):
    """weight -> (weight + beta U V) masked to the most important share; only the small factors are trained."""

    def __init__(
        self, layer: nn.Module, ranks: tuple[int, int], beta: float, alphas: tuple[float, float], draws: torch.Generator
    ) -> None:
        super().__init__()
        outs, ins = weight_of(layer).shape
        self.turned, self.beta, self.alphas = turned(layer), beta, alphas
        made = {
            "u": torch.randn(outs, ranks[0], generator=draws),
            "v": torch.zeros(ranks[0], ins),
            "a": torch.randn(outs, ranks[1], generator=draws),
            "b": torch.zeros(ranks[1], ins),
            "row": torch.zeros(outs),
            "column": torch.zeros(ins),
        }
        for name, values in made.items():
            self.register_parameter(name, nn.Parameter(values.to(layer.weight.device)))
        self.register_buffer("level", torch.tensor(1.0, device=layer.weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        w = (weight.T if self.turned else weight.flatten(1)) + self.beta * (self.u @ self.v)
        scores = importance(w, self.a @ self.b, self.row, self.column, *self.alphas)
        kept = top(scores, float(self.level)).to(w.dtype)
        w = w * (kept + (scores - scores.detach()))  # the mask forward, the scores backward
        return (w.T if self.turned else w.reshape(weight.shape)).to(weight.dtype)


@method(
    name="parameter_efficient_sparsity",
    title="PST: parameter-efficient sparse training",
    paper="arXiv:2205.11005",
    lit="p523",
    code="alibaba/AliceMind",
    family="compress/prune",
    year=2022,
    tier="core",
    status="stable",
)
class ParameterEfficientSparsity(Part):
    """Prune while fine-tuning, with a low-rank change of the weights and low-rank scores of what they are worth.

    ## What it does
    Freezes the model and trains six small factors for each pruned layer W (out, in):

        W' = (W + beta U V) * M         M = 1 on the share `keep` with the largest S, in each layer
        S = |W + beta U V| + alpha1 A B + alpha2 (R 1' + 1 C')          dL/dS = dL/dM, straight through

    U (out, rank), A (out, score_rank) random, all else 0 at first: the start is pruning by magnitude. The share falls from 1
    to `keep` as a cube between `warmup` and 1 - `cooldown` of the run. At the end W' is written in.

    ## Claim
    BERT, RoBERTa and GPT-2 on dozens of tasks, 50 to 90 % of the weights gone: on a par with or better than sparse
    fine-tuning that trains all weights and as many scores, with 1.5 % of its trained numbers.

    ## Cost
    (rank + score_rank) (out + in) + out + in trained numbers a layer. The changed weight, its scores and a selection over them
    at every pass: memory for activations grows by some four matrices a layer.

    ## Fields worth tuning
    The learning rate, `rank`; `alpha1` and `alpha2`, which say how much the data may overrule magnitude.

    ## Watch out
    Scores and weights share one learning rate: where |w| is small beside it, the scores take over at once. Nothing else is
    trained, not even a new head: name it in `trainable`.

    ## Differs from the paper
    The authors keep, of the epochs after the target is reached, the one that scores best; here it is the last.

    ## See also
    block_movement, which scores blocks; lora; perp, which retrains after pruning.
    """

    keep: float = 0.1
    """Share of the weights of each layer left at the end."""
    rank: int = 8
    """Rank of the weights' change."""
    score_rank: int = 8
    """Rank of the scores."""
    beta: float = 1.0
    """Scale of the weights' change."""
    alpha1: float = 1.0
    """Scale of the low-rank scores."""
    alpha2: float = 1.0
    """Scale of the scores of whole rows and columns."""
    warmup: float = 0.1
    """Share of the run before the first weight goes."""
    cooldown: float = 0.3
    """Share of the run, at its end, with the target held."""
    trainable: tuple[str, ...] = ()
    """Words in the names of other weights to train, such as a new head's."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""

    ranges = {"rank": [2, 32, "log"], "score_rank": [2, 32, "log"]}
    null = None  # it trains other numbers than plain training does, whatever its fields
    tiny = {"world": "digits", "keep": 0.3}

    def attach(self, loop):
        share("keep", self.keep)
        if self.rank < 1 or self.score_rank < 1:
            raise Bad(f"rank={self.rank} and score_rank={self.score_rank} must be at least 1")
        if min(self.warmup, self.cooldown) < 0 or self.warmup + self.cooldown > 1:
            raise Bad(f"warmup={self.warmup} and cooldown={self.cooldown} are shares that add up to at most 1")
        net = loop.model.net
        layers = plain(matrices(net, self.targets))
        frozen = [name for name, p in net.named_parameters() if not p.requires_grad]
        freeze(net, self.trainable)
        for path, layer in layers.items():
            ranks, alphas = (self.rank, self.score_rank), (self.alpha1, self.alpha2)
            made = Sparse(layer, ranks, self.beta, alphas, loop.rng("pst", path))
            made.frozen_before = frozen
            layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", made)

    def update(self, loop, s, inner):
        inner()
        self._set(loop, min(1.0, loop.done + 1 / loop.steps))  # for the next pass: the first is dense

    def detach(self, loop):
        self._set(loop, loop.done)  # an average of the weights would have averaged the level too
        frozen: list[str] = []
        for layer, made in self._layers(loop):
            frozen = made.frozen_before
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
        for name, p in loop.model.net.named_parameters():
            p.requires_grad_(name not in frozen)

    def _set(self, loop, done: float) -> None:
        middle = 1 - self.warmup - self.cooldown
        x = (done - self.warmup) / middle if middle > 0 else float(done >= self.warmup)
        for _, made in self._layers(loop):
            made.level.fill_(cubic(x, 1.0, self.keep))

    def _layers(self, loop) -> list[tuple[nn.Module, Sparse]]:
        wide = [m for m in loop.model.net.modules() if parametrize.is_parametrized(m, "weight")]
        return [(m, p) for m in wide for p in m.parametrizations.weight if isinstance(p, Sparse)]
