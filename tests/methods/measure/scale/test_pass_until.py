"""The estimate is unbiased at every cap (summed exactly), the law is a line, and rare passes are told from none."""

from functools import cache
from math import comb

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.measure.scale.pass_until import PassUntil, bend, pass_rate, task_law
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import tiny


@pytest.mark.parametrize("p", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("wanted, most", [(2, 6), (3, 9), (4, 4)])
def test_the_estimate_is_unbiased_at_any_cap(p, wanted, most):
    mean = total = 0.0
    for k in range(wanted, most + 1):  # the last wanted pass is sample k
        chance = comb(k - 1, wanted - 1) * p**wanted * (1 - p) ** (k - wanted)
        mean, total = mean + chance * float(pass_rate(wanted, k, wanted)), total + chance
    for k in range(wanted):  # the cap came first
        chance = comb(most, k) * p**k * (1 - p) ** (most - k)
        mean, total = mean + chance * float(pass_rate(k, most, wanted)), total + chance
    assert total == pytest.approx(1) and mean == pytest.approx(p)


def test_the_law_is_a_line_in_twice_the_logarithm():
    sizes = np.array([1e6, 4e6, 3e7, 2.4e9])
    rates = np.exp(-30 * sizes**-0.2)
    assert task_law(sizes, rates) == pytest.approx((30, 0.2)) and bend(sizes, rates) == pytest.approx(0, abs=1e-9)
    assert (
        bend(sizes, rates ** (1 / (1 + 0.05 * np.log(sizes / 1e6) ** 2))) < 0
    )  # faster than the law: what is called emergence
    with pytest.raises(ValueError, match="between 0 and 1"):
        task_law(sizes, [0.0, 0.1, 0.2, 0.3])


class Coin:
    """A run that writes the answer with a known chance."""

    def __init__(self, p: float) -> None:
        self.p, self.asked = p, 0

    def generate(self, model, prompts, new, temperature, key):
        self.asked += len(prompts)
        return ["yes" if v < self.p else "no" for v in np.random.default_rng(key[1]).random(len(prompts))]


def test_sampling_stops_at_the_last_wanted_pass_and_at_the_cap():
    data = Data.of({"prompt": ["q"] * 400, "completion": ["yes "] * 400})
    model = Model(torch.nn.Linear(2, 2))
    step, run = PassUntil(passes=3, most=50, chunk=8), Coin(0.2)
    report = PassUntil.__call__.__wrapped__(step, run, model, data)
    samples = report["samples"].values
    assert report.value == pytest.approx(0.2, abs=0.02) and samples.min() >= 3 and samples.max() <= 50
    assert run.asked < 400 * 30 and samples.mean() == pytest.approx(3 / 0.2, rel=0.1)
    never = PassUntil.__call__.__wrapped__(step, Coin(0.0), model, data)
    assert never.value == 0 and never.measured[0].notes["capped"] == 1 and (never["samples"].values == 50).all()


def test_bad_input_is_named():
    nouns = tiny.world("sums")
    for fields, said in (({"passes": 1}, "passes"), ({"most": 1}, "most"), ({"temperature": 0.0}, "temperature")):
        with pytest.raises(ValueError, match=said):
            PassUntil(**fields)(Run(), nouns["model"], nouns["data"])
    with pytest.raises(ValueError, match="prompt"):
        PassUntil()(Run(), nouns["model"], Data.of({"text": ["a"]}))


@cache
def writer(seed: int) -> tuple[Model, Data, float]:
    """A model that is right now and then, its prompts, and its true mean pass rate."""
    nouns = tiny.world("sums", seed)
    model = Run(seed).fit(nouns["model"], nouns["data"], steps=30, **tiny.HOW["sums"])
    data = nouns["test"].take(range(40))
    texts = Run(seed + 77).generate(model, list(data.text("prompt")) * 100, 4, 1.0, size=1000)
    right = [t.strip() == a for t, a in zip(texts, [c.strip() for c in data.text("completion")] * 100, strict=True)]
    return model, data, float(np.mean(right))


def measure(seed: int, arm: str) -> float:
    """Distance from the true mean pass rate; the rival looks at one sample a prompt, as accuracy does."""
    model, data, truth = writer(seed)
    if arm == "method":
        return abs(PassUntil(passes=2, most=64, chunk=32, new=4)(Run(seed), model, data).value - truth)
    texts = Run(seed).generate(model, list(data.text("prompt")), 4, 1.0)
    return abs(
        float(np.mean([t.strip() == a.strip() for t, a in zip(texts, data.text("completion"), strict=True)])) - truth
    )


CLAIM = Claim(
    method="pass_until",
    world="sums",
    rival="one-shot accuracy",
    quantity="distance from the true mean pass rate",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
