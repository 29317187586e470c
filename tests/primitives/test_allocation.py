from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from trainlore.primitives.allocation import allocate, allotted, alone
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.masks import matrices, weight_of, write
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def brute(losses, costs, budget):
    """The least total loss over all ways to choose."""
    layers = list(losses)
    ways = product(*(losses[layer] for layer in layers))
    fits = [way for way in ways if sum(costs[x][k] for x, k in zip(layers, way, strict=True)) <= budget]
    return min(sum(losses[x][k] for x, k in zip(layers, way, strict=True)) for way in fits)


@pytest.mark.parametrize("seed", range(12))
def test_against_every_way_to_choose(seed):
    rng = np.random.default_rng(seed)
    choices = (2, 3, 4, 8)[: rng.integers(2, 5)]
    size = {f"layer{i}": int(rng.integers(10, 1000)) for i in range(5)}
    losses = {x: {k: float(rng.exponential() * 4.0**-k) for k in choices} for x in size}
    costs = {x: {k: float(n * k) for k in choices} for x, n in size.items()}
    budget = float(rng.uniform(min(choices), max(choices)) * sum(size.values()))
    taken = allocate(losses, costs, budget)
    assert list(taken) == list(size)
    assert sum(costs[x][k] for x, k in taken.items()) <= budget
    assert sum(losses[x][k] for x, k in taken.items()) == pytest.approx(brute(losses, costs, budget), rel=1e-9)


def test_it_is_not_greedy():
    """The best gain for its price first (a at 4, then nothing fits) is worse than b and c together."""
    losses = {"a": {2: 7.0, 4: 0.0}, "b": {2: 5.0, 4: 0.0}, "c": {2: 5.0, 4: 0.0}}
    costs = {"a": {2: 0.0, 4: 6.0}, "b": {2: 0.0, 4: 5.0}, "c": {2: 0.0, 4: 5.0}}
    assert allocate(losses, costs, 10.0) == {"a": 2, "b": 4, "c": 4}


def test_large_costs_fit_to_the_last_bit():
    costs = {x: {4: 4e12, 8: 8e12} for x in "ab"}
    losses = {"a": {4: 1.0, 8: 0.0}, "b": {4: 2.0, 8: 0.0}}
    assert allocate(losses, costs, 12e12) == {"a": 4, "b": 8}
    assert allocate(losses, costs, 12e12 - 1) == {"a": 4, "b": 4}


def test_layers_may_have_their_own_choices_and_losses_may_be_below_zero():
    taken = allocate(
        {"a": {"low": -1.0, "high": -3.0}, "b": {"only": 0.0}}, {"a": {"low": 1, "high": 2}, "b": {"only": 1}}, 3
    )
    assert taken == {"a": "high", "b": "only"}


def test_what_a_layer_costs_alone_is_the_divergence_it_makes_and_nothing_is_changed():
    at, run = world("text"), Run(0)
    model, layers = at["teacher"], matrices(at["teacher"].net)
    kept = {path: weight_of(layer).clone() for path, layer in layers.items()}
    batches = batches_of(run, model, at["data"], 8, 4)
    lost = alone(model, layers, batches, (0.0, 0.5, 1.0), lambda weight, share: weight * share)
    assert all(torch.equal(weight_of(layer), kept[path]) for path, layer in layers.items())
    assert all(0.0 == one[1.0] < one[0.5] and one[0.0] > 0.0 for one in lost.values())
    path, layer = next(iter(layers.items()))
    with torch.no_grad():
        before = [model(batch).log_softmax(-1) for batch in batches]
        write(layer, kept[path] * 0.5)
        after = [model(batch).log_softmax(-1) for batch in batches]
    each = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after, strict=True)]
    means = [gap[batch["attention_mask"].bool()].mean() for gap, batch in zip(each, batches, strict=True)]
    assert lost[path][0.5] == pytest.approx(float(sum(means)) / 2, rel=1e-3)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="budget=3"):
        allocate({"a": {2: 1.0}}, {"a": {2: 4.0}}, 3.0)
    with pytest.raises(ValueError, match="costs: nothing is said of a at 4"):
        allocate({"a": {2: 1.0, 4: 0.5}}, {"a": {2: 4.0}}, 9.0)
    with pytest.raises(ValueError, match="losses: that of a at 2 is not finite"):
        allocate({"a": {2: float("nan")}}, {"a": {2: 4.0}}, 9.0)
    with pytest.raises(ValueError, match="no layer"):
        allocate({}, {}, 9.0)
    with pytest.raises(ValueError, match="nothing to choose"):
        allocate({"a": {}}, {"a": {}}, 9.0)


def test_bits_go_where_they_count():
    rise = {"a": [9.0, 4.0, 0.1, 0.0], "b": [0.03, 0.02, 0.01, 0.0], "c": [9.0, 4.0, 0.1, 0.0]}  # at 2, 3, 4, 5 bits
    assert allotted(rise, {"a": 10, "b": 10, "c": 10}, 4, 2) == {"a": 5, "b": 2, "c": 5}
    assert allotted(rise, {"a": 10, "b": 10, "c": 10}, 10 / 3, 2) == {"a": 4, "b": 2, "c": 4}
    assert allotted(rise, {"a": 10, "b": 10, "c": 1000}, 4, 2) == {"a": 5, "b": 3, "c": 4}
