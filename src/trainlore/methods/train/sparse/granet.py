from __future__ import annotations

from math import ceil, cos, pi

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.primitives.masks import count, cubic, erk, matrices, share, stored, top, top_global
from trainlore.verbs import Part, method


def drop_share(done: float, first: float, last: float = 0.005) -> float:
    """Share of the live weights that regeneration replaces: half a cosine from `first` to `last` over the whole run."""
    return last + (first - last) * (1 + cos(pi * done)) / 2 if first else 0.0


def prune(weights: dict[str, Tensor], masks: dict[str, Tensor], keep: float) -> dict[str, Tensor]:
    """Masks of the largest live weights over all layers together, `keep` of all weights; dead ones never come back here."""
    live = sum(int(m.sum()) for m in masks.values())
    k = min(live, count(sum(m.numel() for m in masks.values()), keep))
    return top_global(
        {name: w.detach().abs().float().masked_fill(~masks[name], -1.0) for name, w in weights.items()}, k
    )


def regenerate(weight: Tensor, grad: Tensor, mask: Tensor, drop: float) -> Tensor:
    """Drop the ceil(drop * live) smallest live weights of a layer, revive as many dead ones with the largest gradient.

    All of one shape; returns the new mask. What was dropped a moment ago may come straight back.
    """
    n = ceil(drop * int(mask.sum()))
    if not n:
        return mask
    kept = top(weight.detach().abs().float().masked_fill(~mask, -1.0), int(mask.sum()) - n)
    return kept | top(grad.detach().abs().float().masked_fill(kept, -1.0), n)


@method(
    name="granet",
    title="GraNet: gradual pruning with zero-cost neuroregeneration",
    paper="arXiv:2106.10404",
    lit="p032",
    code="Shiweiliuiiiiiii/GraNet",
    family="train/sparse",
    year=2021,
    tier="core",
    status="stable",
)
class GraNet(Part):
    """Prune by magnitude while training, and let dead weights with a large gradient take the place of weak live ones.

    ## What it does
    Every `every` steps, with x the share of the pruning phase (`begin` to `end` of the run) that is over:

        density = keep + (keep_first - keep) * (1 - x)^3
        1. keep the `density` largest |w| over all layers together                     (until `end`)
        2. in each layer with n live weights drop the ceil(r n) smallest and revive as many
           dead ones, those with the largest |dL/dw|, at the value 0                   (to the last step)

    with r on half a cosine from `drop` to 0.005 over the run. keep_first < 1 starts from a random net whose layers have
    Erdos-Renyi-kernel densities: density of a layer in proportion to (sum of its sides) / (product of its sides).

    ## Claim
    It beats gradual magnitude pruning; started sparse (half the weights) it is the first to beat several dense-to-sparse
    methods with a ResNet-50 on ImageNet in the same training time.

    ## Cost
    A selection over all weights every `every` steps; one bit a weight. The gradient is dense.

    ## Fields worth tuning
    `every`: at least some tens of prunings before `end`. `end`: leave a third of the run to recover.

    ## Watch out
    One ranking over all layers can empty a layer. A revived weight starts at 0 with the optimizer's old moments.
    Weights are exact zeros on return, an average of the weights (EMA) included: it is masked once more.

    ## Differs from the paper
    The authors prune the output head too (name it in `targets`), zero the momentum of dead weights (SGD), and end one
    pruning short of the target: here it is reached exactly, in the last step if not before. Their density of a start is met on average,
    here to the weight. The 0/1 masks live in the net as buffers named `alive`, and so in its checkpoints.

    ## See also
    magnitude (once, after training), block_movement.
    """

    keep: float = 0.1
    """Share of the weights left at the end."""
    keep_first: float = 1.0
    """Share of the weights at the start: 1 is dense, 0.5 the authors' sparse-to-sparse training."""
    drop: float = 0.5
    """Share of a layer's live weights that the first regeneration replaces; 0 is gradual magnitude pruning."""
    every: int = 100
    """Steps between two prunings; the authors use 1000 on CIFAR and 4000 on ImageNet."""
    begin: float = 0.0
    """Share of the run at which pruning begins."""
    end: float = 0.7
    """Share of the run at which the target is reached."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""

    ranges = {"drop": [0.2, 0.8]}
    null = {"keep": 1.0, "keep_first": 1.0, "drop": 0.0}
    tiny = {"world": "digits", "keep": 0.2, "every": 5}

    def attach(self, loop):
        share("keep", self.keep)
        share("keep_first", self.keep_first)
        if self.keep > self.keep_first:
            raise Bad(f"keep={self.keep} is above keep_first={self.keep_first}: pruning only takes away")
        if not 0 <= self.drop < 1 or self.every < 1 or not 0 <= self.begin < self.end <= 1:
            raise Bad("give drop in [0, 1), every >= 1 and begin < end, both shares of the run")
        layers = matrices(loop.model.net, self.targets)
        if frozen := [name for name, m in layers.items() if not stored(m).requires_grad]:
            raise Bad(f"{frozen[0]} is frozen, and pruning while training trains it: name other `targets`")
        if twice := [name for name, m in layers.items() if "alive" in m._buffers]:
            raise Bad(f"{twice[0]} is pruned by two of these parts: give them different `targets`")
        shapes = {name: tuple(stored(m).shape) for name, m in layers.items()}
        for name, density in erk(shapes, self.keep_first).items():
            alive = torch.ones(shapes[name], dtype=torch.bool)
            if density < 1:
                alive = top(torch.rand(shapes[name], generator=loop.rng("granet", name)), density)
            layers[name].register_buffer("alive", alive.to(stored(layers[name]).device))

    @torch.no_grad()
    def start(self, loop):
        for m in self._layers(loop).values():
            stored(m).mul_(m.alive)
        return {}

    @torch.no_grad()
    def update(self, loop, s, inner):
        inner()
        layers = self._layers(loop)
        for m in layers.values():
            stored(m).mul_(m.alive)
        t, done = loop.t + 1, min(1.0, loop.done + 1 / loop.steps)
        if done < self.begin or (t % self.every and t < loop.steps):
            return
        density = cubic((done - self.begin) / (self.end - self.begin), self.keep_first, self.keep)
        masks = prune({n: stored(m) for n, m in layers.items()}, {n: m.alive for n, m in layers.items()}, density)
        for name, m in layers.items():
            weight, mask = stored(m), masks[name]
            if t < loop.steps and weight.grad is not None:  # a weight revived in the last step would only be a zero
                mask = regenerate(weight, weight.grad, mask, drop_share(done, self.drop))
            m.alive.copy_(mask)
            weight.mul_(mask)

    @torch.no_grad()
    def detach(self, loop):
        for m in self._layers(loop).values():
            stored(m).mul_(m.alive)
            del m.alive

    def _layers(self, loop):
        named = ((path, m) for path, m in loop.model.net.named_modules() if "alive" in m._buffers)
        return {p: m for p, m in named if not self.targets or any(f".{p}".endswith(f".{t}") for t in self.targets)}
