from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import Unit, batches_of, walk
from trainlore.primitives.codewords import Mixture, clusters, openness
from trainlore.primitives.grids import Codebook, free, settle
from trainlore.primitives.masks import matrices, plain, share, weight_of
from trainlore.primitives.rounding import put_on, reconstruct, take_off
from trainlore.runs import Run
from trainlore.verbs import Fit, method


@method(
    name="vq4dit",
    title="VQ4DiT: vector quantization with candidate assignments",
    paper="arXiv:2408.17131",
    lit="p001",
    code="dengjuncan/VQ4DiT",
    family="compress/quantize",
    year=2024,
    tier="core",
    status="stable",
)
class VQ4DiT(Fit):
    """Store runs of weights as numbers of codewords, and learn codewords and choices together, block by block.

    ## What it does
    Each layer's runs of d inputs are clustered to k codewords C; a run w keeps its n nearest ones as candidates:

        w^ = sum_j softmax(r)_j C[a_j]                  r_j = log(|w - C[a_n]| / |w - C[a_j]|) at first
        minimize || f(W, X) - f(W^, X') ||^2 + press * n * mean p (1 - p)          over C and r, by RMSprop

    where f is one repeated block (or a layer outside them) and p are the shares of the runs that are still open. The
    second term acts only in steps where it lies above the lowest value seen. A share beyond `beyond` fixes its run's
    choice; a layer with 99% of its choices made makes the rest, and so do all after `until` of the steps: then only the
    codewords are fitted. The result holds codewords; the model keeps the table and the choices.

    ## Claim
    DiT XL/2 at 2 bits a weight (256 codewords of length 4) with acceptable images, in 20 minutes to 5 hours on one A100.
    Fitting codewords under fixed choices gives runs that share one contradicting gradients; choosing anew mends that.

    ## Cost
    k-means of each layer (out * in / d rows), two forward passes over `rows` a block, then `steps` passes forward and back
    through that block. Memory: two sets of activations of one block; for its layers n (2 + d) numbers a run.

    ## Fields worth tuning
    `lr`: too small leaves the k-means table; `codewords` and `length` set the bits: log2(codewords) / length a weight.

    ## Watch out
    The table is stored too: on small layers it weighs as much as the choices, so the codewords are cut to a quarter of
    the runs (a power of two), as the authors do. At most 256. On a small language model the calibration was the gain, not
    the choices: 60 steps moved the logits by 0.032 with two candidates and by 0.027 with one (five seeds; clusters 0.13).

    ## Differs from the paper
    Blocks are done one after the other, each reading what the quantized ones before it give; the authors' code fits all
    at once, opens the codewords only once a layer's choices are made, and fits the biases too. Calibration rows are
    given: the paper takes them, without data, from the diffusion model's own path from noise.

    ## See also
    nearest, gptq, flexround.
    """

    codewords: int = 256
    """Size of each layer's table, 2 to 256."""
    length: int = 4
    """Inputs a codeword spans."""
    candidates: int = 2
    """Nearest codewords a run may choose from; 1 fits the table under fixed choices."""
    press: float = 1.0
    """Weight of the term that drives the shares apart."""
    beyond: float = 0.99
    """Share at which a choice is made."""
    until: float = 0.75
    """Share of the steps after which every choice is made."""
    rows: int = 128
    """Calibration rows, drawn from the data."""
    steps: int = 500
    """Optimizer steps for each block; 0 leaves the clusters as they are found."""
    size: int = 8
    """Rows a step."""
    lr: float = 1e-4
    """Learning rate of the codewords."""
    lr_choices: float = 0.05
    """Learning rate of the logits of the choices."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to quantize; all but the output head when empty."""
    tolerance: float = 1.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"lr": [0.00003, 0.01, "log"], "press": [0.1, 10.0, "log"]}
    tiny = {"world": "text", "steps": 10, "rows": 16, "lr": 1e-3}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if not 2 <= self.codewords <= 256:
            raise Bad(f"codewords={self.codewords} do not fit in a byte: give 2 to 256")
        if self.length < 1 or self.candidates < 1 or self.steps < 0:
            given = f"length={self.length}, candidates={self.candidates}, steps={self.steps}"
            raise Bad(f"{given}: give at least 1, 1 and 0 (steps=0: k-means alone)")
        share("beyond", self.beyond, 0.5), share("until", self.until)
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        batches = batches_of(run, model, data, self.rows, self.size, "vq4dit")
        for unit in walk(model, layers, batches, goals=True):
            self._reconstruct(run, model, unit)
        return model

    def _reconstruct(self, run: Run, model: Model, unit: Unit) -> None:
        """Cluster the unit's layers, fit tables and choices, and write them in."""

        def made(path: str, layer: nn.Module) -> Mixture:
            weight, draws = weight_of(layer), run.numpy("vq4dit", "clusters", path)
            if not weight.isfinite().all():
                raise Bad(f"the weight of {path} holds infinities or NaN: the model is broken before it is compressed")
            book = clusters(weight, self.length, self.codewords, draws)
            return Mixture(layer, book, self.length, self.candidates if self.steps else 1)

        mixed = put_on(unit.layers, made)
        tables, logits = [m.book for m in mixed.values()], [m.logits for m in mixed.values()]
        groups = [{"params": tables, "lr": self.lr}, {"params": logits, "lr": self.lr_choices}]
        lowest = torch.inf

        def loss(step: int, at: int) -> Tensor:
            nonlocal lowest
            error, left = unit.error(at), torch.stack([openness(r.softmax(1)) for r in logits]).mean()
            now, before = float(left.detach()), lowest
            lowest = min(before, now)
            return error + self.press * left if now > before else error

        def freeze(step: int) -> None:
            for one in mixed.values():
                one.freeze(self.beyond if step + 1 < self.until * self.steps else 0.0)

        optimizer = torch.optim.RMSprop(groups, alpha=0.9)
        reconstruct(run, "vq4dit", unit, self.steps, [optimizer], loss=loss, after=freeze)
        take_off(unit.layers)
        for path, layer in unit.layers.items():
            grid = Codebook(mixed[path].book.detach(), mixed[path].codes())
            settle(model, path, layer, grid.back(weight_of(layer).shape[1]), grid)
