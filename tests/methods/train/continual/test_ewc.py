from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainlore.claims import Claim
from trainlore.loop import Loop
from trainlore.methods.train.continual.ewc import EWC, importance
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def loop_of(at: dict) -> Loop:
    return Loop(Run(0), at["model"], at["data"], 10, 8, torch.device("cpu"))


def test_importance_and_penalty_against_a_loop():
    at = world("digits")
    rows, net = at["data"].take(range(5)), copy.deepcopy(at["model"].net).double()
    batch = rows.batch(range(5), at["model"])
    expected = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    for i in range(5):
        net.zero_grad()
        F.cross_entropy(net(batch["features"][i : i + 1].double()), batch["labels"][i : i + 1]).backward()
        for n, p in net.named_parameters():
            expected[n] += p.grad**2 / 5
    got = importance(loop_of(at), rows)
    for n in expected:
        torch.testing.assert_close(got[n].double(), expected[n], rtol=1e-3, atol=1e-8)
    part = EWC(old=at["data"], strength=3.0)
    s = {"importance": expected, "anchor": {n: p.detach() + 0.1 for n, p in at["model"].net.named_parameters()}}
    by_hand = sum(3.0 / 2 * float(f) * 0.1**2 for e in expected.values() for f in e.flatten())
    assert float(part.penalty(loop_of(at), s).detach()) == pytest.approx(by_hand, rel=1e-4)


def test_frozen_weights_are_left_out_and_more_strength_holds_more():
    at = world("digits")
    first = at["model"].net[0]
    first.requires_grad_(False)
    state = EWC(old=at["test"], rows=4).start(loop_of(at))
    assert not any(name.startswith("0.") for name in state["importance"])
    moved = []
    for strength in (1.0, 1e5):
        at = world("digits")
        before = [p.detach().clone() for p in at["model"].net.parameters()]
        Run(0).fit(at["model"], at["data"], EWC(old=at["test"], strength=strength, rows=20), steps=20, **HOW["digits"])
        moved.append(
            sum(float((p - q).square().sum()) for p, q in zip(at["model"].net.parameters(), before, strict=True))
        )
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("field, value", [("strength", -1.0), ("rows", 0), ("old", None)])
def test_bad_fields_are_named(field, value):
    at = world("digits")
    fields = {"old": at["test"], field: at["test"].take([]) if field == "old" else value}
    with pytest.raises(ValueError, match=field):
        Run(0).fit(at["model"], at["data"], EWC(**fields), steps=1, **HOW["digits"])


def turned(data):
    pixels = np.asarray(data["features"]).reshape(-1, 8, 8)
    return data.with_(features=np.ascontiguousarray(np.rot90(pixels, axes=(1, 2)).reshape(-1, 64)))


def measure(seed: int, arm: str) -> float:
    """Digits upright, then turned by a quarter: the mean accuracy on both."""
    at, run = world("digits", seed), Run(seed)
    model = run.fit(at["model"], at["data"], steps=80, **HOW["digits"])
    part = EWC(old=at["data"], strength=100.0 if arm == "method" else 0.0, rows=50)
    run.fit(model, turned(at["data"]), part, steps=80, **HOW["digits"])
    right = lambda b, out: (out.argmax(-1) == b["labels"]).float()
    return float(torch.cat([run.infer(model, d, right) for d in (at["test"], turned(at["test"]))]).mean())


CLAIM = Claim(
    method="ewc",
    world="digits",
    rival="plain training",
    quantity="mean accuracy on the old and the new task",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
