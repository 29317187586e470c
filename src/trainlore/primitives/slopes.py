"""Gradients by what a classifier reads, and how they vary between checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model
    from trainlore.runs import Run

__all__ = ["input_slopes", "slope_spread", "spread"]

BATCH = 64  # rows that go through the network together


def input_slopes(model: Model, batch: dict[str, Tensor]) -> Tensor:
    """The gradient of each row's true logit by what a classifier reads, (B, D): a number a token, pixel or feature.

    Of tokens it is by their embeddings, mean over dimensions; of pixels the mean over channels. Evaluation mode is yours
    to set."""
    kept: list[Tensor] = []

    def hold(module: Any, args: Any, out: Tensor) -> Tensor:
        kept.append(out.detach().requires_grad_())
        return kept[0]

    if model.input == "input_ids":
        hook = model.net.get_input_embeddings().register_forward_hook(hold)  # type: ignore[operator]
        try:
            out = model(batch)
        finally:
            hook.remove()
    else:
        out = model({**batch, model.input: hold(None, None, batch[model.input])})
    slope = torch.autograd.grad(out.gather(1, batch["labels"][:, None]).sum(), kept[0])[0]
    if model.input == "input_ids":
        return slope.mean(-1)
    return (slope.mean(1) if slope.dim() == 4 else slope).flatten(1)


def spread(slopes: Tensor, counted: Tensor) -> Tensor:
    """How much each row's input gradient varies between checkpoints, (B,): slopes (K, B, D), counted bool (B, D).

    The standard deviation over the K checkpoints at each input, averaged over the inputs that count.
    """
    deviation = slopes.std(0, correction=0) * counted
    return deviation.sum(1) / counted.sum(1).clamp(min=1)


def slope_spread(run: Run, model: Model, data: Data, snapshots: Sequence[dict[str, Tensor]]) -> Tensor:
    """The `spread` of each row's `input_slopes` over state dicts of the model, (N,) on the CPU; the last one stays in it."""
    found = []
    model.net.eval()
    with run.meter.running():
        for at in range(0, len(data), BATCH):
            batch = data.batch(np.arange(at, min(at + BATCH, len(data))), model)
            batch, slopes = {k: v.to(model.device) for k, v in batch.items()}, []
            for weights in snapshots:
                model.net.load_state_dict(weights)
                slopes.append(input_slopes(model, batch))
            counted = batch.get("attention_mask", torch.ones_like(slopes[0])).bool()
            found.append(spread(torch.stack(slopes), counted).cpu())
    return torch.cat(found)
