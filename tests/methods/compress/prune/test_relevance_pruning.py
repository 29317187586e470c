from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.compress.prune.relevance_pruning import RelevancePruning, remaining
from trainlore.nouns import Data, Model
from trainlore.primitives.shrinking import chain, cut_units
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(), nn.AvgPool2d(1)),
        nn.Flatten(),
        nn.Linear(6, 10),
        nn.ReLU(),
        nn.Linear(10, 10),
    )


def test_cutting_units_out_is_setting_them_to_zero():
    net, x = images(), rand(5, 64).float()
    masks = [rand(n, seed=n) > 0.4 for n in (4, 6, 10)]
    zeroed = copy.deepcopy(net)
    inner = [m for m in chain(zeroed).values() if hasattr(m, "weight")][:-1]
    for layer, mask in zip(inner, masks, strict=True):
        layer.weight.data[~mask], layer.bias.data[~mask] = 0, 0
    cut_units(list(chain(net).values()), masks)
    torch.testing.assert_close(net(x), zeroed(x))
    assert [len(m.weight) for m in chain(net).values() if hasattr(m, "weight")][:-1] == [int(m.sum()) for m in masks]


def test_the_lowest_of_all_layers_go_and_one_of_each_stays():
    scores = [torch.tensor([0.1, 0.0]), torch.tensor([0.5, 0.2, 0.3])]
    assert [m.tolist() for m in remaining(scores, 2)] == [[True, False], [True, False, True]]
    assert [m.tolist() for m in remaining(scores, 3)] == [[True, False], [True, False, False]]


@pytest.mark.parametrize("fields", [{"step": 1.0}, {"step": 0.1, "tune": 2}])
def test_so_many_units_are_left_and_it_trains_on(fields):
    at, run = world("digits"), Run(0)
    after = run.step(RelevancePruning(keep=0.25, tolerance=9.0, **fields), at["teacher"].copy(), at["data"])
    assert sum(len(m.weight) for m in chain(after.net).values() if hasattr(m, "weight")) == 48 + 10
    assert after.size < at["teacher"].size / 4 and run.meter.steps == (0 if len(fields) == 1 else 2 * 8)
    net = Model.of(images())
    kept = run.step(RelevancePruning(keep=0.5, per_class=3), net, at["data"])
    assert sum(len(m.weight) for m in chain(kept.net).values() if hasattr(m, "weight")) == 10 + 10


@pytest.mark.parametrize("fields", [{"keep": 0.0}, {"step": 0.0}, {"per_class": 0}])
def test_bad_input_is_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        RelevancePruning(**fields)(at["teacher"], at["data"])
    with pytest.raises(ValueError, match="LlamaForCausalLM|label"):
        RelevancePruning()(world("text")["teacher"], world("text")["data"])
    with pytest.raises(ValueError, match="BatchNorm1d at 1"):
        chain(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    with pytest.raises(ValueError, match="no layer but its output"):
        RelevancePruning()(Model.of(nn.Sequential(nn.Linear(64, 10))), at["data"])


def few(data: Data, classes) -> Data:
    return data.where([c in classes for c in data["label"].tolist()])


def measure(seed: int, arm: str) -> float:
    """A net for ten digits is cut down to three of them, drawn by the seed, with ten rows of each and no training."""
    at, run = world("digits"), Run(seed)
    classes = run.numpy("classes").permutation(10)[:3].tolist()
    model = at["teacher"].copy()
    if arm == "method":
        model = run.step(RelevancePruning(keep=0.5, per_class=10, tolerance=9.0), model, few(at["data"], classes))
    else:
        inner = [m for m in chain(model.net).values() if hasattr(m, "weight")][:-1]
        sizes = [m.weight.detach().abs().sum(1) for m in inner]
        total = sum(len(s) for s in sizes)
        cut_units(list(chain(model.net).values()), remaining([s / s.sum() for s in sizes], total - round(0.5 * total)))
    return float(
        run.infer(model, few(at["test"], classes), lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean()
    )


CLAIM = Claim(
    method="relevance_pruning",
    world="digits",
    rival="units by the sum of |w|, as a share of their layer's",
    quantity="test accuracy on three classes with half of the units, untrained",
    better="higher",
    measure=measure,
    seeds=20,
    quick=6,
)
