from __future__ import annotations

from math import cos, pi

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.schedule.cosine import Cosine, cosine
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_against_torchs_own_cosine():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.1)
    for t in range(50):
        assert cosine(t / 50, 1 / 50, 0.0, 0.1) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()


def test_warmup_then_half_a_cosine_over_the_rest():
    got = [cosine(t / 20, 1 / 20, 0.2) for t in range(20)]
    assert got[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert got[4:] == pytest.approx([(1 + cos(pi * (t - 4) / 16)) / 2 for t in range(4, 20)])


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="floor"):
        Cosine(floor=1.5).start(None)


def measure(seed: int, arm: str) -> float:
    """Each arm at its own best learning rate of three, found on half of the test rows; accuracy on the other half."""
    at, run, found = world("digits", seed), Run(seed), []
    tuning, test = (at["test"].take(range(i, len(at["test"]), 2)) for i in (0, 1))
    for lr in (0.003, 0.01, 0.03):
        part = Cosine(warmup=0.05, floor=0.0 if arm == "method" else 1.0)
        model = run.fit(at["model"].copy(), at["data"], part, steps=150, **HOW["digits"] | {"lr": lr})
        found.append(
            [
                float(run.infer(model, d, lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())
                for d in (tuning, test)
            ]
        )
    return max(found)[1]


CLAIM = Claim(
    method="cosine",
    world="digits",
    rival="a constant learning rate after the same warmup, both at their best of three",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
