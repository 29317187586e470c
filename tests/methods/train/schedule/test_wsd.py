from __future__ import annotations

import pytest

from trainlore.claims import Claim
from trainlore.methods.train.schedule.wsd import WSD, wsd
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_against_a_loop_that_counts_steps():
    steps, up, fall = 100, 10, 20
    for t in range(steps):
        if t < up:
            mine = (t + 1) / up
        elif t <= steps - fall:
            mine = 1.0
        else:
            mine = 0.1 + 0.9 * (steps - t) / fall
        assert wsd(t / steps, 1 / steps, up / steps, fall / steps, 0.1) == pytest.approx(mine)


@pytest.mark.parametrize(
    "shape,middle", [("linear", 0.5), ("sqrt", 1 - 0.5**0.5), ("cosine", 0.5), ("exponential", 0.01**0.5)]
)
def test_shapes_begin_at_one_pass_their_middle_and_end_at_the_floor(shape, middle):
    floor = 0.01 if shape == "exponential" else 0.0
    got = [wsd(done, 0.0, 0.0, 0.2, floor, shape) for done in (0.8, 0.9, 1.0)]
    assert got == pytest.approx([1.0, middle, floor])


def test_the_papers_half_life_is_the_exponential_shape():
    half_lives = 4  # 0.5^((s - S) / T) over a decay of 4 T steps
    for k in range(5):
        assert wsd(0.9 + 0.1 * k / 4, 0.0, 0.0, 0.1, 0.5**half_lives, "exponential") == pytest.approx(0.5**k)


@pytest.mark.parametrize(
    "fields", [{"warmup": -0.1}, {"warmup": 0.6, "decay": 0.6}, {"shape": "cubic"}, {"shape": "exponential"}]
)
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=list(fields)[-1].replace("exponential", "floor")):
        WSD(**fields).start(None)


def measure(seed: int, arm: str) -> float:
    """Each arm at its own best learning rate of three, found on half of the test rows; accuracy on the other half."""
    at, run, found = world("digits", seed), Run(seed), []
    tuning, test = (at["test"].take(range(i, len(at["test"]), 2)) for i in (0, 1))
    for lr in (0.003, 0.01, 0.03):
        part = WSD(warmup=0.05, decay=0.3 if arm == "method" else 0.0)
        model = run.fit(at["model"].copy(), at["data"], part, steps=150, **HOW["digits"] | {"lr": lr})
        found.append(
            [
                float(run.infer(model, d, lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())
                for d in (tuning, test)
            ]
        )
    return max(found)[1]


CLAIM = Claim(
    method="wsd",
    world="digits",
    rival="a constant learning rate after the same warmup, both at their best of three",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
