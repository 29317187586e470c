"""Which weights the loss feels: the diagonal of the Fisher information, as rows and their labels show it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.reparam import still, turned


def saliency(model: Model, chosen: Mapping[str, nn.Module], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Mean square of the gradient of the loss by each weight (out, in), float32 by path, over batches of one row each."""
    weights, training = {path: layer.weight for path, layer in chosen.items()}, model.net.training
    total = {path: torch.zeros_like(w, dtype=torch.float32) for path, w in weights.items()}
    model.net.eval()
    try:
        with still(model.net), torch.enable_grad():
            for w in weights.values():
                w.requires_grad_(True)
            for batch in batches:
                if "labels" not in batch:
                    raise Bad("data has no labels, and what the loss feels is told by the loss of its rows: give some")
                loss = per_row(rowwise(model.kind, batch, model(batch)), batch, model.kind).mean()
                for path, slope in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
                    total[path] += slope.float().square()
    finally:
        model.net.train(training)
    return {path: (t.T if turned(chosen[path]) else t) / len(batches) for path, t in total.items()}
