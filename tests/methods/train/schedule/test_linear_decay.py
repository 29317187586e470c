from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.schedule import linear_decay as ld
from trainlore.methods.train.schedule.linear_decay import LinearDecay
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_refinement_against_a_loop():
    norms = np.random.default_rng(0).uniform(1, 3, 30)
    for adaptive in (True, False):
        weight = [1 / g if adaptive else 1 / g**2 for g in norms]
        mine = [weight[t] * sum(weight[t + 1 :]) for t in range(30)]
        got = ld.refine(norms, adaptive, window=0.0)
        np.testing.assert_allclose(got, np.array(mine) / max(mine), rtol=1e-12)


def test_constant_norms_give_the_straight_line_back():
    for adaptive in (True, False):
        np.testing.assert_allclose(ld.refine(np.full(101, 7.0), adaptive), np.linspace(1, 0, 101), atol=1e-12)


def test_large_first_norms_give_a_warmup_and_rising_last_ones_a_fast_anneal():
    x = np.linspace(0, 1, 400)
    early = ld.refine(1 + 14 * np.exp(-x / 0.05), window=0.02)
    assert early.argmax() > 20 and early[0] < 0.5
    late = ld.refine(1 + 2 * np.clip(x - 0.8, 0, 1) / 0.2, window=0.02)
    assert late[-80] < 0.2 * (1 + 1e-9) and np.all(np.diff(late) <= 1e-12)


def test_the_median_filter_against_a_loop_with_both_ends_mirrored():
    g = np.random.default_rng(1).uniform(1, 3, 20)
    around = lambda t: [g[abs(i) if i < 20 else 38 - i] for i in range(t - 3, t + 4)]
    weight = np.array([1 / np.median(around(t)) for t in range(20)])
    mine = np.array([weight[t] * weight[t + 1 :].sum() for t in range(20)])
    np.testing.assert_allclose(ld.refine(g, window=0.3), mine / mine.max())


def test_one_odd_first_norm_does_not_own_the_schedule():
    g = np.full(100, 50.0)
    g[0] = 1.0
    np.testing.assert_allclose(ld.refine(g), np.linspace(1, 0, 100), atol=1e-12)


def test_a_schedule_is_read_at_any_length_and_long_records_are_thinned():
    schedule = np.linspace(1, 0, 50)
    assert [ld.at(schedule, t / 50) for t in range(50)] == pytest.approx(schedule.tolist())
    assert ld.at(schedule, 0.5) == pytest.approx(schedule[25]) and ld.at(schedule, 1.0) == 0.0
    short, every = ld.thinned([1.0, 3.0] * ld.POINTS, 2)
    assert short == [2.0] * ld.POINTS and every == 4


def test_a_run_keeps_its_norms_and_another_is_refined_by_them():
    at = world("digits")
    first = Run(0).fit(at["model"].copy(), at["data"], LinearDecay(), steps=20, **HOW["digits"])
    norms = first.about["gradient_norms"]
    assert len(norms) == 20
    class_loss = torch.nn.functional.cross_entropy
    again = world("digits")["model"]
    batch = at["data"].batch(np.arange(len(at["data"])))
    class_loss(again(batch), batch["labels"]).backward()
    whole = sum(float(p.grad.abs().sum()) for p in again.net.parameters())
    assert 0.3 * whole < norms[0] < 3 * whole  # of another batch, but the same quantity
    second = Run(0).fit(at["model"].copy(), at["data"], LinearDecay(observed=first), steps=20, **HOW["digits"])
    assert second.about["curve"]["rate"] == pytest.approx(ld.refine(norms).tolist())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="gradient norms"):
        ld.refine([0.0, 0.0])
    with pytest.raises(ValueError, match="observed"):
        LinearDecay(observed=world("digits")["model"]).start(None)
    with pytest.raises(ValueError, match="window=2"):
        LinearDecay(window=2.0).start(None)


def measure(seed: int, arm: str) -> float:
    """Each arm at its own best learning rate of three, found on half of the test rows; accuracy on the other half."""
    at, run, found = world("digits", seed), Run(seed), []
    tuning, test = (at["test"].take(range(i, len(at["test"]), 2)) for i in (0, 1))
    for lr in (0.003, 0.01, 0.03):
        part = LinearDecay(warmup=0.05, floor=0.0 if arm == "method" else 1.0)
        model = run.fit(at["model"].copy(), at["data"], part, steps=150, **HOW["digits"] | {"lr": lr})
        found.append(
            [
                float(run.infer(model, d, lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())
                for d in (tuning, test)
            ]
        )
    return max(found)[1]


CLAIM = Claim(
    method="linear_decay",
    world="digits",
    rival="a constant learning rate after the same warmup, both at their best of three",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
