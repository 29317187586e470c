from __future__ import annotations

from math import ceil

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.objective.ema import EMA
from trainlore.methods.train.sparse.granet import GraNet, drop_share, prune, regenerate
from trainlore.primitives.masks import matrices, sparsity
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def zeros(model):
    return sparsity({name: m.weight for name, m in matrices(model.net).items()})


def test_pruning_and_regeneration_against_a_loop():
    weights = {"a": rand(6, 5), "b": 3 * rand(4, 4, seed=1)}
    dead = torch.arange(30).view(6, 5) % 3 == 0
    masks = {"a": ~dead, "b": torch.ones(4, 4, dtype=torch.bool)}
    ranked = sorted(
        (
            (abs(v), n, i)
            for n, w in weights.items()
            for i, v in enumerate(w.flatten().tolist())
            if masks[n].flatten()[i]
        ),
        reverse=True,
    )
    best = {(n, i) for _, n, i in ranked[: round(0.4 * 46)]}
    got = prune(weights, masks, 0.4)
    assert {(n, i) for n, m in got.items() for i in m.flatten().nonzero().flatten().tolist()} == best

    weight, grad, mask = rand(20), rand(20, seed=2), torch.arange(20) < 13
    n = ceil(0.3 * 13)
    live = sorted((abs(weight[i].item()), i) for i in range(13))
    kept = {i for _, i in live[n:]}
    grown = sorted(((abs(grad[i].item()), i) for i in range(20) if i not in kept), reverse=True)[:n]
    assert set(regenerate(weight, grad, mask, 0.3).nonzero().flatten().tolist()) == kept | {i for _, i in grown}


def test_the_drop_share_falls_as_in_the_authors_code():
    assert [drop_share(d, 0.5) for d in (0, 0.5, 1)] == pytest.approx([0.5, 0.2525, 0.005])
    assert drop_share(0.3, 0.0) == 0.0


@pytest.mark.parametrize("fields", [{}, {"keep_first": 0.5}, {"drop": 0.0}, {"end": 1.0, "every": 7}])
def test_the_target_is_met_exactly_with_exact_zeros(fields):
    at = world("digits")
    model = Run(0).fit(
        at["model"], at["data"], GraNet(**{"keep": 0.2, "every": 5, **fields}), steps=30, **HOW["digits"]
    )
    total = sum(m.weight.numel() for m in matrices(model.net).values())
    live = sum(int((m.weight != 0).sum()) for m in matrices(model.net).values())
    assert round(0.2 * total) >= live > 0.95 * 0.2 * total  # a revived weight may still be 0
    assert not any("alive" in name for name in model.net.state_dict())


def test_an_average_of_the_weights_is_as_sparse():
    at = world("digits")
    parts = GraNet(keep=0.2, every=5), EMA(decay=0.9)
    assert zeros(Run(0).fit(at["model"], at["data"], *parts, steps=30, **HOW["digits"]))["total"] >= 0.8 - 1e-3


@pytest.mark.parametrize(
    "fields", [{"keep": 0.0}, {"keep": 0.5, "keep_first": 0.2}, {"drop": 1.0}, {"begin": 0.9, "end": 0.5}]
)
def test_bad_fields_are_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        Run(0).fit(at["model"], at["data"], GraNet(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    at, run = world("digits", seed), Run(seed)
    part = GraNet(keep=0.05, every=10, drop=0.5 if arm == "method" else 0.0)
    model = run.fit(at["model"], at["data"], part, steps=200, **HOW["digits"])
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="granet",
    world="digits",
    rival="gradual magnitude pruning",
    quantity="test accuracy at 5 % of the weights",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
