"""Which layer gets how much: one choice each, the smallest total loss whose total cost a budget allows."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from math import isfinite
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model
from trainlore.primitives.masks import weight_of, write
from trainlore.primitives.teaching import kl

Choice = TypeVar("Choice", bound=Hashable)
SLACK = 2e-6  # of the budget: by how much the solver may take more than it was given


def allocate(
    losses: Mapping[str, Mapping[Choice, float]], costs: Mapping[str, Mapping[Choice, float]], budget: float
) -> dict[str, Choice]:
    """One choice for every layer (bits, a rank, a share): the least sum of losses whose costs sum to at most `budget`.

    losses, costs: by layer, then by choice; the choices of a layer are those that `losses` names for it.

        minimize sum_lk loss_lk x_lk,   sum_k x_lk = 1 for every l,   sum_lk cost_lk x_lk <= budget,   x_lk 0 or 1

    Solved as it stands, by branch and bound (HiGHS): no relaxation is rounded. Losses that differ by less than a 1e-9th
    of the largest count as equal.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    pairs = [(layer, choice) for layer, own in losses.items() for choice in own]
    if bare := [layer for layer, own in losses.items() if not own]:
        raise Bad(f"losses: {bare[0]} has nothing to choose from: give it at least one choice")
    if not pairs:
        raise Bad("losses: there is no layer to allocate to")
    if lost := [f"{layer} at {choice}" for layer, choice in pairs if choice not in costs.get(layer, {})]:
        raise Bad(f"costs: nothing is said of {lost[0]}: give a cost for every choice that has a loss")
    loss = np.array([losses[layer][choice] for layer, choice in pairs], dtype=np.float64)
    cost = np.array([costs[layer][choice] for layer, choice in pairs], dtype=np.float64)
    for name, values in (("losses", loss), ("costs", cost)):
        if not np.isfinite(values).all():
            layer, choice = pairs[int(np.flatnonzero(~np.isfinite(values))[0])]
            raise Bad(f"{name}: that of {layer} at {choice} is not finite: leave the choice out")
    least = sum(min(costs[layer][choice] for choice in own) for layer, own in losses.items())
    if not isfinite(budget) or budget < least:
        raise Bad(f"budget={budget:g} is less than the cheapest choices cost together, {least:g}: raise it")

    number = {layer: at for at, layer in enumerate(losses)}
    rows = np.array([number[layer] for layer, _ in pairs])
    one = csr_array((np.ones(len(pairs)), (rows, np.arange(len(pairs)))), shape=(len(number), len(pairs)))
    loss = loss - loss.min()  # only differences count, as every layer takes exactly one
    scale = 1e3 / max(loss.max(), np.finfo(float).tiny)
    unit = max(abs(budget), abs(cost).max(), np.finfo(float).tiny)
    for slack in (0.0, SLACK):
        room = LinearConstraint(csr_array(cost[None] / unit), ub=(budget - slack * unit) / unit)
        found = milp(
            scale * loss,
            constraints=[LinearConstraint(one, 1, 1), room],
            integrality=np.ones(len(pairs)),
            bounds=Bounds(0, 1),
            options={"mip_rel_gap": 0.0},
        )
        if found.x is None:
            continue
        taken = {layer: choice for (layer, choice), x in zip(pairs, found.x, strict=True) if x > 0.5}
        if sum(costs[layer][choice] for layer, choice in taken.items()) <= budget:
            return taken
    return {layer: min(own, key=lambda choice: costs[layer][choice]) for layer, own in losses.items()}


@torch.no_grad()
def alone(
    model: Model,
    layers: Mapping[str, nn.Module],
    batches: Sequence[Batch],
    choices: Sequence[Choice],
    change: Callable[[Tensor, Choice], Tensor],
) -> dict[str, dict[Choice, float]]:
    """What changing each layer by itself does to the model's outputs, by path and choice: mean divergence over batches.

    change(weight (out, in), choice) gives the weight that is tried; the model is put back. Padding is left out. Outputs
    that are no classes (numbers, embeddings) are compared by their squared distance. Costs layers * choices passes.
    """
    training = model.net.training
    model.net.eval()
    lost: dict[str, dict[Choice, float]] = {path: dict.fromkeys(choices, 0.0) for path in layers}
    for batch in batches:
        want = model(batch)
        real = batch["attention_mask"].bool() if "attention_mask" in batch else None
        for path, layer in layers.items():
            weight = weight_of(layer).clone()
            for choice in choices:
                write(layer, change(weight, choice))
                gap = _apart(model.kind, model(batch), want)
                kept = gap[real] if real is not None and real.shape == gap.shape else gap
                lost[path][choice] += float(kept.mean()) / len(batches)
            write(layer, weight)
    model.net.train(training)
    return lost


def _apart(kind: str, after: Tensor, before: Tensor) -> Tensor:
    """How far outputs (..., K) went: (...,)."""
    if kind in ("regressor", "encoder", "denoiser"):
        return (after.float() - before.float()).square().mean(-1)
    return kl(after, before).clamp(min=0.0)


def allotted(rise: Mapping[str, list[float]], size: Mapping[str, int], bits: float, low: int) -> dict[str, int]:
    """Bits of each layer: from the most on, one bit at a time from where it costs least for each weight.

    rise: the damage of a layer at low, low + 1, ... bits; size: its weights. Ends when a weight has at most `bits` on
    average.
    """
    width = {path: low + len(steps) - 1 for path, steps in rise.items()}
    left, budget = sum(width[p] * size[p] for p in width), bits * sum(size.values())
    while left > budget:
        cost = {p: (rise[p][w - low - 1] - rise[p][w - low]) / size[p] for p, w in width.items() if w > low}
        path = min(cost, key=cost.__getitem__)
        width[path] -= 1
        left -= size[path]
    return width
