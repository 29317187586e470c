from __future__ import annotations

from math import cos, pi

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.train.schedule.cosine import Cosine
from trainlore.methods.train.schedule.infinite import Infinite, infinite
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_four_phases_against_a_loop():
    up, cool, stay, fall, constant, floor = 10, 20, 30, 10, 0.4, 0.02
    mine = [(n + 1) / up for n in range(up)]
    mine += [constant + (1 - constant) * (1 + cos(pi * k / cool)) / 2 for k in range(cool)]
    mine += [constant] * stay
    for _ in range(fall):
        mine.append(mine[-1] * (floor / constant) ** (1 / fall))
    got = [infinite(n, up, cool, constant, up + cool + stay, fall, floor) for n in range(len(mine))]
    assert got == pytest.approx(mine)
    assert got[-1] == pytest.approx(floor)


def test_it_is_infinite_and_goes_on_where_the_last_data_set_ended():
    assert infinite(10**9, 10, 20, 0.4) == 0.4
    one = [infinite(n, 5, 10, 0.4) for n in range(40)]

    class Loop:
        t, steps = 0, 20

    part, loop = Infinite(warmup=5, cool=10, constant=0.4, since=20), Loop()
    assert [part.rate(loop, {}) for loop.t in range(20)] == pytest.approx(one[20:])


def test_an_anneal_inside_the_cooldown_goes_on_from_its_rate():
    before = infinite(15, 10, 20, 0.4)
    after = [infinite(n, 10, 20, 0.4, 15, 5, 0.1) for n in range(15, 20)]
    assert all(a > b for a, b in zip([before, *after], after, strict=False)) and after[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("fields", [{"warmup": -1}, {"constant": 0.0}, {"floor": 0.0}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Infinite(**fields).start(None)


def measure(seed: int, arm: str) -> float:
    """Two data sets in turn, half of the classes each: accuracy on all of them at the end."""
    at, run, steps = world("digits", seed), Run(seed), 60
    model, label = at["model"], at["data"]["label"]
    for turn, classes in enumerate((range(5), range(5, 10))):
        parts = [Cosine(warmup=0.1)]
        if arm == "method":
            parts = [Infinite(warmup=6, cool=30, constant=0.3, anneal=turn * 15, since=turn * steps)]
        mine = at["data"].where(np.isin(label, list(classes)))
        model = run.fit(model, mine, *parts, steps=steps, **HOW["digits"])
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="infinite",
    world="digits",
    rival="a cosine warmed up again for each data set",
    quantity="accuracy on both halves of the classes, learned in turn",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
