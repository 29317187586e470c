from __future__ import annotations

import pytest
import torch

from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.fisher import saliency
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.masks import matrices
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_saliency_is_the_mean_squared_gradient_of_single_rows():
    at, run = world("text"), Run(0)
    model, layers = at["teacher"], dict(list(matrices(at["teacher"].net).items())[:2])
    model.net.requires_grad_(True)
    got = saliency(model, layers, batches_of(run, model, at["data"], 6, 1, "x"))
    whole = batches_of(run, model, at["data"], 6, 6, "x")[0]
    each = per_row(rowwise("causal", whole, model(whole)), whole, "causal")
    for path, layer in layers.items():
        slopes = [torch.autograd.grad(row, layer.weight, retain_graph=True)[0].square() for row in each]
        torch.testing.assert_close(got[path], torch.stack(slopes).mean(0), rtol=1e-3, atol=1e-9)
    assert all(p.requires_grad and p.grad is None for p in model.net.parameters())
    with pytest.raises(ValueError, match="no labels"):
        saliency(model, layers, [{"input_ids": whole["input_ids"]}])
