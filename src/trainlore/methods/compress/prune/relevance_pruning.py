from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.grids import free
from trainlore.primitives.masks import count, plain, share
from trainlore.primitives.relevance import TINY, Relevance
from trainlore.primitives.reparam import reshaped
from trainlore.primitives.shrinking import LAYERS, chain, cut_units
from trainlore.runs import Run
from trainlore.verbs import Fit, method


@method(
    name="relevance_pruning",
    title="Pruning by explaining (LRP)",
    paper="arXiv:1912.08881",
    lit="p221",
    code="seulkiyeom/LRP_Pruning_toy_example",
    family="compress/prune",
    year=2019,
    tier="core",
    status="stable",
)
class RelevancePruning(Fit):
    """Cut out the units that a few rows' right answers owe least to.

    ## What it does
    For a few rows of each class, the logit of the right class is handed back through the net, layer by layer (z+ rule):

        R_y = logit of the right class, 0 of the others;    R_i = sum_j a_i w+_ij / (sum_i' a_i' w+_i'j) R_j

    A unit's relevance is the sum of its R over rows and places, as a share of its layer's. The units of all layers are
    ranked together, the least relevant `step` go, for real, and relevance is taken again, until the share `keep` is
    left. `tune` steps of training may follow each cut.

    ## Claim
    VGG, AlexNet and ResNets on six image data sets: as good as or better than weight, gradient and Taylor criteria when
    the net is retrained after each step, and clearly better when rows are few and it is not.

    ## Cost
    A forward and a like backward pass over `per_class` rows of each class for every step.

    ## Fields worth tuning
    `per_class`; `step`, smaller where much is cut; `tune`.

    ## Watch out
    It needs a chain of linear or convolution layers with ReLU, which is what the rule is for: no residual branches, no
    attention. A class without rows is forgotten: that is how to fit a net to fewer classes. With a fifth of the units
    left it is no better than magnitude here (three of ten digits: 37 % right against 32 %, n = 20, p = 0.4); with half
    it is.

    ## Differs from the paper
    Relevance that biases swallow is made up for by the layer's sum, as in the authors' toy code. One unit of each layer
    always stays.

    ## See also
    magnitude; ziplm and darwinlm for transformers.
    """

    keep: float = 0.5
    """Share of all units (but the classes) that stay."""
    step: float = 0.05
    """Share of all units that goes at a time."""
    per_class: int = 10
    """Rows of each class that are explained, drawn from the data."""
    tune: int = 0
    """Training steps after each cut."""
    batch_size: int = 32
    """Rows a training step."""
    lr: float = 1e-3
    """Learning rate of the training."""
    tolerance: float = 2.0
    """Relative distance of the logits beyond which the step fails."""

    ranges = {"step": [0.01, 0.2, "log"], "per_class": [5, 50]}
    tiny = {"world": "digits", "keep": 0.8}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        share("keep", self.keep)
        share("step", self.step)
        if self.per_class < 1 or self.tune < 0:
            raise Bad(f"per_class={self.per_class} must be at least 1 and tune={self.tune} at least 0")
        data.need("label", who="relevance_pruning")
        modules = chain(model.net)
        layers = {path: m for path, m in modules.items() if isinstance(m, LAYERS)}
        free(model, plain(layers))
        inner = list(layers.values())[:-1]
        if not inner:
            raise Bad("the network has no layer but its output: there is no unit to take out")
        sizes = [len(m.weight) for m in inner]
        left, goal = sum(sizes), max(len(inner), count(sum(sizes), self.keep))
        at_once, was = max(1, ceil(self.step * left)), model.net.training
        rows = self._rows(run, data)
        while left > goal:
            model.net.eval()
            score = self._scores(model, list(modules.values()), data, rows, [len(m.weight) for m in inner])
            masks = remaining(score, min(at_once, left - goal))
            cut_units(list(modules.values()), masks)
            left = sum(int(m.sum()) for m in masks)
            model = reshaped(model)
            model.net.train(was)
            if self.tune:
                model = run.fit(model, data, steps=self.tune, batch_size=self.batch_size, lr=self.lr)
        return model

    def _rows(self, run: Run, data: Data) -> np.ndarray:
        """`per_class` rows of each class, or all that it has."""
        labels = np.asarray(data["label"])
        order = run.numpy("relevance", "rows").permutation(len(labels))
        return np.sort(np.concatenate([order[labels[order] == c][: self.per_class] for c in np.unique(labels)]))

    def _scores(
        self, model: Model, modules: list[nn.Module], data: Data, rows: np.ndarray, sizes: Sequence[int]
    ) -> list[Tensor]:
        """Each unit's share of its layer's relevance, a tensor (units,) a layer."""
        explain = Model(Relevance(modules), "encoder").net  # a net of its own, so that the meter counts
        total = torch.zeros(sum(sizes), device=model.device)
        for at in range(0, len(rows), 64):
            batch = data.batch(rows[at : at + 64], model)
            total += explain(batch[model.input].to(model.device), batch["labels"].to(model.device).long()).sum(0)
        return [part / part.sum().abs().clamp(min=TINY) for part in total.split(list(sizes))]


def remaining(scores: Sequence[Tensor], gone: int) -> list[Tensor]:
    """Masks of the units that stay when the `gone` lowest of all layers go, the best of each layer never among them."""
    flat = torch.cat([s.float() for s in scores])
    sizes = [len(s) for s in scores]
    safe = torch.tensor([int(s.argmax()) + sum(sizes[:n]) for n, s in enumerate(scores)], device=flat.device)
    order = flat.scatter(0, safe, torch.inf).argsort(stable=True)
    mask = torch.ones_like(flat, dtype=torch.bool)
    mask[order[:gone]] = False
    return list(mask.split(sizes))
