from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.calibrating import batches_of, walk
from trainlore.primitives.grids import free
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.primitives.reparam import still, turned
from trainlore.primitives.rounding import put_on, reconstruct, take_off
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def masked(weight: Tensor, change: Tensor, scale: float) -> Tensor:
    """W + scale * change where W is not 0, and 0 where it is; both of one shape."""
    return weight + scale * change.masked_fill(weight == 0, 0.0)


class Adapter(nn.Module):
    """weight -> weight with a low-rank change that leaves its zeros alone: added (mask) or multiplied in (scale)."""

    def __init__(self, layer: nn.Module, how: str, rank: int, alpha: float, draws: torch.Generator) -> None:
        super().__init__()
        self.how, self.scale, self.turned = how, alpha / rank, turned(layer)
        outs, ins = weight_of(layer).shape
        if how == "scale":  # their product is 1 everywhere
            up, down = torch.full((outs, rank), rank**-0.5), torch.full((rank, ins), rank**-0.5)
        else:
            up, down = torch.zeros(outs, rank), (2 * torch.rand(rank, ins, generator=draws) - 1) * ins**-0.5
        self.up, self.down = nn.Parameter(up.to(layer.weight.device)), nn.Parameter(down.to(layer.weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        change = self.up @ self.down
        change = (change.T if self.turned else change.reshape(weight.shape)).to(weight.dtype)
        return weight * change if self.how == "scale" else masked(weight, change, self.scale)


@method(
    name="perp",
    title="PERP: parameter-efficient retraining after pruning",
    paper="arXiv:2312.15230",
    lit="p415",
    code="ZIB-IOL/PERP",
    family="compress/prune",
    year=2023,
    tier="core",
    status="stable",
)
class PERP(Fit):
    """Retrain a pruned model through its biases, norms and a low-rank change that keeps every zero.

    ## What it does
    Freezes the pruned weights W, M = (W is not 0), and trains biases, the weights of norms and for each pruned layer

        update: mask     W' = W + alpha / rank * M * (B A)       B = 0, A random at first
        update: scale    W' = W * (B A)                          B A = 1 everywhere at first
        update: none     W' = W

    on the data's own loss; then writes W' in. W' is 0 wherever W is, so nothing has to be pruned again. With `dense`, the
    model before it was pruned, there is no loss and no pass through the whole net: block by block

        minimize || f_dense(X) - f(X) ||^2 / n     X: what the pruned blocks before give

    by Adam, its rate rising for a tenth of the steps and falling in a straight line to 0.

    ## Claim
    Retraining 0.01 to 0.05 % of the weights of GPT-like models up to 30B (biases and norms) matches retraining all of them at
    moderate sparsity, in minutes on one GPU; the two low-rank forms close the gap at high sparsity; as a reconstruction
    they improve on Wanda and SparseGPT.

    ## Cost
    `steps` of training whose optimizer holds the trained numbers only; each changed weight is written out at every pass.
    With `dense`: one block at a time, two sets of activations of `rows` at it, and the dense model.

    ## Fields worth tuning
    `lr` (the authors tune it for every model), `steps`; biases and norms alone (`update: none`) up to half of the zeros.

    ## Watch out
    A Llama has no biases. A weight that happens to be 0 counts as pruned, and so on a dense model this is LoRA.

    ## Differs from the paper
    The authors also put an ordinary low-rank change on the output head, which here stays as it is. The rate is constant unless
    `inner` holds a schedule (theirs: a straight line to 0).

    ## See also
    magnitude, wanda, sparsegpt, which prune; lora, bitfit; fold.
    """

    update: str = "mask"
    """How pruned layers change: mask (added where they are not 0), scale (multiplied) or none."""
    rank: int = 16
    """Rank of the change."""
    alpha: float = 32.0
    """mask: scale of the change; it is divided by the rank."""
    biases: bool = True
    """Train the biases."""
    norms: bool = True
    """Train the weights of norms."""
    dense: Model | None = None
    """The model before pruning: reconstruct its blocks instead of training on the loss."""
    steps: int = 1000
    """Steps of the training; with `dense`, of each block."""
    size: int = 8
    """Rows a step."""
    lr: float = 5e-4
    """Learning rate; with `dense` its peak."""
    rows: int = 128
    """With `dense`: calibration rows, drawn from the data."""
    inner: tuple[Part, ...] = ()
    """Parts of the training, such as a schedule; without `dense` only."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the pruned layers; all but the output head when empty."""

    ranges = {"lr": [5e-6, 5e-3, "log"], "rank": [2, 64, "log"]}
    tiny = {"world": "text", "rank": 4, "steps": 5, "lr": 1e-3}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if self.update not in ("mask", "scale", "none"):
            raise Bad(f"update={self.update!r} is none of mask, scale, none")
        if self.rank < 1 or self.steps < 1:
            raise Bad(f"rank={self.rank} and steps={self.steps} must be at least 1")
        if self.dense is not None and self.inner:
            raise Bad("`inner` holds parts of a training on the loss: leave it or `dense` out")
        data.need(who="perp")
        layers = plain(matrices(model.net, self.targets))
        free(model, layers)
        if self.dense is not None:
            return self._reconstruct(run, model, self.dense, data, layers)
        with still(model.net):
            self._open(run, model.net, layers)
            run.fit(model, data, *self.inner, steps=self.steps, batch_size=min(self.size, len(data)), lr=self.lr)
            take_off(layers)
        return model

    def _open(self, run: Run, module: nn.Module, layers: dict[str, nn.Module]) -> list[nn.Parameter]:
        """Adapt the layers, which lie in the module, and let what is to be trained of it move: its trained weights."""
        if self.update != "none":
            how = self.update, self.rank, self.alpha
            put_on(layers, lambda path, layer: Adapter(layer, *how, run.rng("perp", path)))
        for m in module.modules():
            norm = self.norms and "norm" in type(m).__name__.lower()
            for name, p in m.named_parameters(recurse=False):
                if norm or isinstance(m, Adapter) or (self.biases and name == "bias"):
                    p.requires_grad_(True)
        trained = [p for p in module.parameters() if p.requires_grad]
        if not trained:
            raise Bad(f"{type(module).__name__} has nothing to train: no biases, no norms; say update: mask")
        return trained

    def _reconstruct(self, run: Run, model: Model, dense: Model, data: Data, layers: dict[str, nn.Module]) -> Model:
        theirs = dict(dense.net.named_modules())
        if lost := [p for p, m in layers.items() if p not in theirs or theirs[p].weight.shape != m.weight.shape]:
            raise Bad(f"dense has no {lost[0]} of the same shape: give the model as it was before it was pruned")
        dense.net.to(model.device).eval()
        rise = max(1, self.steps // 10)
        left = lambda t: min((t + 1) / rise, (self.steps - t) / max(1, self.steps - rise))
        for unit in walk(model, layers, batches_of(run, model, data, self.rows, self.size, "perp")):
            whole = replace(unit, module=theirs[unit.path])
            with torch.no_grad():
                unit.goals = [whole(at).detach() for at in range(len(unit.calls))]
            optimizer = torch.optim.Adam(self._open(run, unit.module, unit.layers), lr=self.lr)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, left)
            reconstruct(run, "perp", unit, self.steps, [optimizer], [schedule])
            take_off(unit.layers)
            unit.module.requires_grad_(False)
        return model
