from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import batches_of, norms, walk
from trainlore.primitives.grids import free
from trainlore.primitives.masks import count, matrices, pattern_of, plain, share, top, top_pattern, weight_of, write
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def kept(
    weight: Tensor, norms: Tensor, keep: float, pattern: tuple[int, int] | None = None, scope: str = "row"
) -> Tensor:
    """Mask (out, in) of the largest |W| ||X_j||: of each row, of the whole layer, or n of every m neighbours of a row.

    weight (out, in), norms (in,) of the inputs, in any one unit.
    """
    scores = weight.float().abs() * norms
    if not scores.isfinite().all():
        raise Bad(
            "a weight or an input of the calibration rows is no finite number: the model is broken before pruning"
        )
    if pattern:
        return top_pattern(scores, *pattern)
    if scope == "layer":
        return top(scores, keep)
    few = count(scores.shape[1], keep)
    if not few:
        raise Bad(
            f"keep={keep} leaves none of the {scores.shape[1]} inputs of an output: raise it, or say scope: layer"
        )
    return top_pattern(scores, few, scores.shape[1])


@method(
    name="wanda",
    title="Wanda: pruning by weights and activations",
    paper="arXiv:2306.11695",
    code="locuslab/wanda",
    family="compress/prune",
    year=2023,
    tier="llm",
    status="stable",
)
class Wanda(Fit):
    """Set the weights to zero whose product with the size of their input is smallest.

    ## What it does
    For each layer with weights W (out, in) and calibration inputs X:

        score of W_ij = |W_ij| * ||X_j||_2         X_j: input j over all tokens
        the `keep` largest scores of each row i stay as they are, the others become 0

    or the n largest of every m neighbours of a row with a `pattern` n:m. Blocks of the net are done in order, each reading
    what the pruned ones before it give. No weight that stays is changed.

    ## Claim
    LLaMA-2-7B, perplexity on WikiText: 5.12 dense; half the weights gone 14.89 by magnitude, 6.51 by SparseGPT, 6.42 by
    Wanda; at 2:4 54.59, 10.17 and 11.02.

    ## Cost
    Two forward passes over `rows`; one number an input. Memory: the activations of `rows` at one block.

    ## Fields worth tuning
    `pattern`; `scope`: the authors rank within rows for language models and offer the whole layer for image models.

    ## Watch out
    Inputs that are 0 on all calibration rows lose their weights first: give rows of the kind the model will read. Where all
    inputs are of one size (after a norm, in small models) the score is that of magnitude within rows.

    ## Differs from the paper
    The number of zeros of a row is rounded to the nearest, not down. The variant that looks for a share of the score's sum
    is left out.

    ## See also
    magnitude; sparsegpt, which also moves the weights that stay; perp, which trains on.
    """

    keep: float = 0.5
    """Share of the weights that stay."""
    scope: str = "row"
    """What is ranked together: row (the weights of one output) or layer."""
    pattern: str = ""
    """n:m, such as 2:4: what stays of every m neighbours; it takes the place of `keep` and `scope`."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    tiny = {"world": "text", "keep": 0.5, "rows": 16}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        share("keep", self.keep)
        if self.scope not in ("row", "layer"):
            raise Bad(f"scope={self.scope!r} is neither row nor layer")
        layers, pattern = plain(matrices(model.net, self.targets)), pattern_of(self.pattern)
        free(model, layers)
        for unit in walk(model, layers, batches_of(run, model, data, self.rows, self.size, "wanda")):
            for path, size in norms(unit).items():
                weight = weight_of(layers[path])
                mask = kept(weight, size, self.keep, pattern, self.scope)
                write(layers[path], weight.masked_fill(~mask, 0.0))
        return model
