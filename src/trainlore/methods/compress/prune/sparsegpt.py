from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import batches_of, second_moments, walk
from trainlore.primitives.grids import free
from trainlore.primitives.masks import matrices, pattern_of, plain, share, top, top_pattern, weight_of, write
from trainlore.primitives.obs import damped, sweep, upper
from trainlore.runs import Run
from trainlore.verbs import Fit, method


def pruned(
    weight: Tensor,
    moments: Tensor,
    keep: float,
    pattern: tuple[int, int] | None = None,
    damp: float = 0.01,
    block: int = 128,
) -> Tensor:
    """Prune a weight (out, in) column by column, the columns to come making up for each: (out, in) float32.

    moments (in, in): X'X / n of what the layer reads. The mask of a block of columns is chosen when it is reached.
    """
    if pattern and weight.shape[1] % pattern[1]:
        raise Bad(
            f"a layer with {weight.shape[1]} inputs cannot be cut in runs of {pattern[1]}: leave it out of `targets`"
        )
    if not weight.isfinite().all():
        raise Bad("a weight is no finite number: the model is broken before pruning")
    h, dead = damped(moments, damp)
    w = weight.float().masked_fill(dead, 0.0)
    factor = upper(h)
    price = factor.diagonal().square()  # w_j^2 / price_j: the least error that dropping w_j alone leaves
    kept = torch.ones_like(w, dtype=torch.bool)
    m = pattern[1] if pattern else 1
    block = m * max(1, block // m)  # no run of m neighbours lies in two blocks
    live: list[tuple[int, Tensor]] = []

    def begin(start: int, stop: int, here: Tensor) -> None:
        live[:] = [(start, here)]  # the block itself, which changes as its columns are settled
        if not pattern:
            kept[:, start:stop] = top(here.square() / price[start:stop], keep)

    def settle(j: int, column: Tensor) -> Tensor:
        if pattern and j % m == 0:
            start, here = live[0]
            run = here[:, j - start : j - start + m].square() / price[j : j + m]
            kept[:, j : j + m] = top_pattern(run, *pattern)
        return column.masked_fill(~kept[:, j], 0.0)

    return sweep(w, factor, settle, begin, block)


@method(
    name="sparsegpt",
    title="SparseGPT",
    paper="arXiv:2301.00774",
    code="IST-DASLab/sparsegpt",
    family="compress/prune",
    year=2023,
    tier="llm",
    status="stable",
)
class SparseGPT(Fit):
    """Prune weights column by column and let the columns still to come make up for what each one lost.

    ## What it does
    For each layer with inputs X, H = X'X / n + damping and U'U = H^-1 (upper triangular):

        for each block of `block` columns:   keep the share `keep` of its largest w_ij^2 / U_jj^2
            for each column j of it:         e = w_j / U_jj where pruned, else 0;   w_k <- w_k - e U_jk for all k > j

    which is the best answer of the later columns to the loss of column j in || dW X ||^2. With a `pattern` n:m the mask of
    every m columns is chosen when they are reached, n a row. Blocks of the net are done in order, each reading what the
    pruned ones before it give.

    ## Claim
    LLaMA-2-7B, perplexity on WikiText (measured by the authors of Wanda): 5.12 dense; half the weights gone 14.89 by magnitude
    and 6.51 by SparseGPT, at 2:4 54.59 and 10.17. OPT-175B is pruned to half on one GPU in hours.

    ## Cost
    Two forward passes over `rows`; for each layer O(in^3 + out in^2) operations and a matrix (in, in) in float32. Memory:
    the activations of `rows` at one block and the moments of its layers.

    ## Fields worth tuning
    `keep` or `pattern`; `rows`; `block`, whose columns share out their zeros among themselves.

    ## Watch out
    It fits the calibration rows: give rows of the kind the model will read, and more of them than a layer has inputs.
    Inputs that are always 0 there lose their weights.

    ## Differs from the paper
    Exactly the share asked for is pruned (the authors' threshold takes one weight a block more). Pruning alone: their sweep
    can round to a grid as it goes. All layers of a block are calibrated on the block as it was.

    ## See also
    wanda, which only chooses; magnitude; gptq, which rounds by the same sweep.
    """

    keep: float = 0.5
    """Share of the weights that stay."""
    pattern: str = ""
    """n:m, such as 2:4: what stays of every m neighbours; it takes the place of `keep`."""
    block: int = 128
    """Columns whose mask is chosen at once."""
    damp: float = 0.01
    """Share of its mean that is added to the diagonal of H."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    size: int = 8
    """Rows a pass."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"damp": [0.001, 0.1, "log"], "block": [32, 512, "log"]}
    tiny = {"world": "text", "keep": 0.5, "rows": 16}

    @torch.no_grad()
    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        share("keep", self.keep)
        if self.block < 1:
            raise Bad(f"block={self.block} must be at least 1 column")
        layers, pattern = plain(matrices(model.net, self.targets)), pattern_of(self.pattern)
        free(model, layers)
        for unit in walk(model, layers, batches_of(run, model, data, self.rows, self.size, "sparsegpt")):
            for path, moments in second_moments(unit).items():
                weight = weight_of(layers[path])
                write(layers[path], pruned(weight, moments, self.keep, pattern, self.damp, self.block))
        return model
