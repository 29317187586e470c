from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.meta.pbt import PBT, drawn, explored, truncate
from trainlore.methods.train.objective.ema import EMA
from trainlore.nouns import Report
from trainlore.runs import Run
from trainlore.verbs import Measure
from trainlore.worlds.tiny import world


class Right(Measure):
    """Accuracy, without another method's file."""

    card = {"name": "right"}

    def __call__(self, run, model, data):
        return Report.of("accuracy", run.infer(model, data, lambda b, out: (out.argmax(-1) == b["labels"]).float()))


def test_the_worst_fifth_goes_on_from_the_best_fifth():
    scores = np.arange(10.0)[::-1].copy()
    parents = truncate(scores, 0.2, np.random.default_rng(0))
    assert parents[:8].tolist() == list(range(8)) and set(parents[8:]) <= {0, 1}
    drawn_ = {p for seed in range(20) for p in truncate(scores, 0.2, np.random.default_rng(seed))[8:]}
    assert drawn_ == {0, 1}


def test_whoever_diverged_is_replaced_and_small_populations_replace_one():
    parents = truncate([0.1, float("nan"), 0.9, float("nan"), 0.5], 0.2, np.random.default_rng(0))
    assert parents.tolist()[1] == parents.tolist()[3] == 2 and parents[[2, 4]].tolist() == [2, 4]
    assert truncate([1.0, 2.0], 0.2, np.random.default_rng(0)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="lr"):
        truncate([float("nan")] * 3, 0.2, np.random.default_rng(0))


def test_exploring_multiplies_by_a_factor_or_draws_anew():
    ranges = {"lr": (1e-4, 1e-1), "ema.decay": (0.5, 0.99)}
    seen = [
        explored({"lr": 1e-2, "ema.decay": 0.9}, ranges, (0.8, 1.2), 0.0, np.random.default_rng(s)) for s in range(40)
    ]
    assert {round(v["lr"], 6) for v in seen} == {0.008, 0.012}
    assert {round(v["ema.decay"], 6) for v in seen} == {0.72, 0.99}  # 1.08 is beyond its range
    assert len({(v["lr"], v["ema.decay"]) for v in seen}) == 4  # each by itself
    anew = [explored({"lr": 1e-2}, ranges, (0.8, 1.2), 1.0, np.random.default_rng(s))["lr"] for s in range(200)]
    assert 1e-4 <= min(anew) < 4e-4 and 2.5e-2 < max(anew) <= 1e-1
    assert np.mean(np.log10([drawn(1e-4, 1.0, np.random.default_rng(s)) for s in range(400)])) == pytest.approx(
        -2, abs=0.2
    )


def test_it_hands_on_the_best_member_with_the_schedule_it_lived_through():
    at, run = world("digits"), Run(0)
    start = {k: v.clone() for k, v in at["model"].net.state_dict().items()}
    pbt = PBT(
        judge=Right(),
        held_out=at["test"].take(range(100)),
        people=4,
        rounds=3,
        steps=15,
        lr=0.01,
        inner=(EMA(decay=0.9),),
    )
    model = run.step(pbt, at["model"], at["data"])
    life = model.about["pbt"]
    assert len(life["schedule"]) == 3 and all(0.001 <= v["lr"] <= 0.1 for v in life["schedule"])
    assert run.step(Right(), model, pbt.held_out).value == pytest.approx(life["score"])
    assert all(torch.equal(v, start[k]) for k, v in at["model"].net.state_dict().items())


@pytest.mark.parametrize(
    "fields", [{"people": 1}, {"share": 0.6}, {"tune": {"dropout": (0.1, 0.2)}}, {"tune": {"lr": (0.0, 1.0)}}]
)
def test_bad_fields_are_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        PBT(judge=Right(), held_out=at["test"], **fields)(at["model"], at["data"])


def measure(seed: int, arm: str) -> float:
    """Random search of the same population, the best kept, with or without exploit and explore."""
    at, run = world("digits", seed), Run(seed)
    held_out, rest = at["test"].take(range(0, len(at["test"]), 2)), at["test"].take(range(1, len(at["test"]), 2))
    turns = {"rounds": 5, "steps": 20} if arm == "method" else {"rounds": 1, "steps": 100}
    pbt = PBT(judge=Right(), held_out=held_out, people=5, lr=1e-2, tune={"lr": (1e-4, 1e-1)}, batch_size=32, **turns)
    return run.step(Right(), run.step(pbt, at["model"], at["data"]), rest).value


CLAIM = Claim(
    method="pbt",
    world="digits",
    rival="random search with the same population and steps",
    quantity="test accuracy of the member chosen",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
