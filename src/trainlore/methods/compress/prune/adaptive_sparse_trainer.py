from __future__ import annotations

import torch

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.alike import same_tokens
from trainlore.primitives.holding import find, hold, holding, let_go, shaped
from trainlore.primitives.losses import aligned
from trainlore.primitives.masks import matrices, pattern_of, plain, stored, top_pattern, weight_of
from trainlore.primitives.teaching import kl, where_trained
from trainlore.verbs import Part, method


def strength(done: float, decay: float, rise: float) -> float:
    """Decay of masked weights when the share `done` of the run is over: a straight line up to `decay` at `rise`."""
    return decay if done >= rise else decay * done / rise


@method(
    name="adaptive_sparse_trainer",
    title="AST: adaptive sparse trainer",
    paper="arXiv:2407.20584",
    lit="p360",
    code="thu-ml/Adaptive-Sparse-Trainer",
    family="compress/prune",
    year=2024,
    tier="llm",
    status="stable",
)
class AdaptiveSparseTrainer(Part):
    """Train a dense model into a pattern such as 2:4, its mask free to change, with the dense model as its teacher.

    ## What it does
    Every `every` steps the n largest |w| of every m neighbours along the inputs become the mask M. In between

        forward with W * M;    g <- dL/d(W * M) + lambda (1 - M) * W   for all of W, masked or not
        lambda = decay * min(1, done / rise)
        L = (1 - alpha) loss + alpha T^2 KL( softmax(teacher / T) || softmax(model / T) )

    so that a masked weight goes on learning and may come back; the decay, small at first while masks should move,
    settles them as it grows. At the end the masked weights are exact zeros.

    ## Claim
    GPT-2 124M at 2:4, perplexity on WikiText: 29.95 dense, 50.09 by SparseGPT, 33.48 by gradual magnitude pruning, 32.23
    by this (31.13 with an extra branch). LLaMA-2-7B: 1.16 points of zero-shot accuracy below dense after less than 0.4 %
    of the tokens it was pretrained on.

    ## Cost
    One bit and one masked copy a weight, a selection every `every` steps; the teacher's forward pass.

    ## Fields worth tuning
    `decay` (the authors: 6e-5 by default, 1e-4 on GPT-2), with the learning rate.

    ## Watch out
    The decay enters the gradient, so with Adam it weighs what decay * |w| is against the gradients, not against the learning
    rate: the default is for large models, small ones have larger gradients. Ahead of `clip` in a recipe it is clipped too.
    Contradicted here: a tiny language model at 2:4 ends 60 steps 0.010 nats behind the same distillation with its first mask
    held (n = 10, p = 0.002, decay 0.1), with a cosine schedule no less (n = 3), and 0.05 behind with the default decay (n = 3).

    ## Differs from the paper
    The optimizer averages gradient and decay together; the authors average the gradient and add the decay after. Their
    SLoRB, a dense branch beside each layer that sums inputs in groups, is left out: no plain architecture holds it, and written into
    the weights it would undo the pattern. Masks by magnitude only.

    ## See also
    magnitude with a pattern; kd; perp; granet.
    """

    teacher: Model | None = None
    """The dense model, whose answers are matched; without one there is no distillation."""
    pattern: str = "2:4"
    """n:m: what stays of every m neighbours; empty: nothing is masked."""
    decay: float = 1e-4
    """How much masked weights are pulled to 0, in the gradient, at its height."""
    rise: float = 0.25
    """Share of the run over which the decay rises to its height."""
    every: int = 10
    """Steps between two masks."""
    alpha: float = 0.67
    """Weight of the teacher's answers; the labels have the rest."""
    temperature: float = 2.0
    """Divides both networks' logits."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""

    ranges = {"decay": [1e-6, 1e-1, "log"], "alpha": [0.2, 1.0]}
    null = {"pattern": "", "decay": 0.0, "alpha": 0.0}
    tiny = {"world": "digits", "teacher": "$teacher", "every": 5}

    def attach(self, loop):
        if self.decay < 0 or self.every < 1 or not 0 <= self.rise <= 1:
            raise Bad(
                f"decay={self.decay}, every={self.every}, rise={self.rise}: give >= 0, >= 1 and a share of the run"
            )
        if not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise Bad(f"alpha={self.alpha} must be from 0 to 1 and temperature={self.temperature} above 0")
        if pattern := pattern_of(self.pattern):
            layers = plain(matrices(loop.model.net, self.targets))
            hold(layers, {p: top_pattern(weight_of(m).abs(), *pattern) for p, m in layers.items()}, straight=True)

    def start(self, loop):
        if self.teacher is not None:
            if loop.model.kind in ("regressor", "encoder", "denoiser"):
                raise Bad(
                    f"a {loop.model.kind} model makes no choice among classes or tokens to match: leave `teacher` out"
                )
            same_tokens(loop.model, self.teacher, "adaptive_sparse_trainer")
            self.teacher.net.to(loop.device).eval()
        return {}

    def loss(self, loop, s, batch, out, inner):
        if self.teacher is None or not self.alpha:
            return inner(batch, out)
        kind = loop.model.kind
        with torch.no_grad():
            said = self.teacher(batch)
        if said.shape != out.shape:
            raise Bad(f"teacher answers in the form {tuple(said.shape)}, the model in {tuple(out.shape)}")
        gap = where_trained(kind, batch, kl(aligned(kind, out), aligned(kind, said), self.temperature))
        return (1 - self.alpha) * inner(batch, out) + self.alpha * self.temperature**2 * gap

    def gradient(self, loop, s, inner):
        inner()
        if now := strength(loop.done, self.decay, self.rise):
            for layer in self._layers(loop).values():
                weight = stored(layer)
                if weight.grad is not None:
                    weight.grad.add_(weight.detach().masked_fill(find(layer).kept, 0.0), alpha=now)

    def update(self, loop, s, inner):
        inner()
        pattern = pattern_of(self.pattern)
        if pattern and (loop.t + 1) % self.every == 0:
            for layer in self._layers(loop).values():
                find(layer).kept.copy_(shaped(layer, top_pattern(weight_of(layer).abs(), *pattern)))

    def detach(self, loop):
        let_go(self._layers(loop))

    def _layers(self, loop):
        return holding(loop.model.net, self.targets) if self.pattern else {}
