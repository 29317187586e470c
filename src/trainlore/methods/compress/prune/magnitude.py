from __future__ import annotations

import torch

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.grids import free
from trainlore.primitives.masks import (
    matrices,
    pattern_of,
    plain,
    share,
    top_global,
    top_layers,
    top_pattern,
    weight_of,
    write,
)
from trainlore.runs import Run
from trainlore.verbs import Shape, method


@method(
    name="magnitude",
    title="Magnitude pruning",
    paper="arXiv:1710.01878",
    lit="p006",
    family="compress/prune",
    year=2017,
    tier="core",
    status="stable",
)
class Magnitude(Shape):
    """Set the smallest weights to zero.

    ## What it does
    Keeps the `keep` largest |w| of the linear and convolution layers, ranked over all of them together or in each layer
    by itself, and sets the others to exactly 0. With a `pattern` n:m it keeps the n largest of every m neighbours along
    the inputs of each output instead. Biases, embeddings, norms and the output head stay.

    ## Claim
    The rival of every pruner: one shot, no data, no training. Zhu and Gupta prune gradually while training and find a
    large pruned net better than a small dense one of the same size.

    ## Cost
    One selection over the weights.

    ## Fields worth tuning
    `scope`: global keeps more where weights are large, and can empty a layer; layer is safe.

    ## Watch out
    Zeros make a model smaller and faster only in a form that stores or skips them; 2:4 is what current hardware skips.
    A survey of pruning (arXiv:2308.06767) calls this a speed-up for special hardware: where there is none, take out whole
    heads, neurons or units instead (ziplm, darwinlm, relevance_pruning), and measure the time rather than count zeros.
    Training afterwards fills the zeros: add `hold_zeros`.

    ## Differs from the paper
    Once, after training; the gradual form is `granet` with drop: 0. Patterns are not the paper's.

    ## See also
    granet, block_movement; wanda and sparsegpt, which look at the inputs too; hold_zeros and perp, which train what is
    left.
    """

    keep: float = 0.5
    """Share of the weights that stay."""
    scope: str = "global"
    """What is ranked together: global (all layers) or layer."""
    pattern: str = ""
    """n:m, such as 2:4: what stays of every m neighbours; it takes the place of `keep` and `scope`."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    null = {"keep": 1.0}
    tiny = {"world": "digits", "keep": 0.5}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model) -> Model:
        share("keep", self.keep)
        if self.scope not in ("global", "layer"):
            raise Bad(f"scope={self.scope!r} is neither global nor layer")
        layers, pattern = plain(matrices(model.net, self.targets)), pattern_of(self.pattern)
        free(model, layers)
        scores = {name: weight_of(layer).abs() for name, layer in layers.items()}
        if pattern:
            masks = {name: top_pattern(s, *pattern) for name, s in scores.items()}
        else:
            masks = top_global(scores, self.keep) if self.scope == "global" else top_layers(scores, self.keep)
        for name, layer in layers.items():
            write(layer, weight_of(layer).masked_fill(~masks[name], 0.0))
        return model
