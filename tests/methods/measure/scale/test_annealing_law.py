"""The areas are the paper's sums; the law comes back from its own curve; and annealing is what the power law alone misses."""

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.scale.annealing_law import AnnealingLaw, areas, fit, law
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds import tiny


class Rate(Part):
    """A schedule for the test: constant and then falling over `tail`, or a cosine."""

    def __init__(self, tail: float) -> None:
        self.tail = tail

    def rate(self, loop, s):
        left = 1 - loop.t / loop.steps
        return min(1.0, left / self.tail) if self.tail < 1 else 0.5 - 0.5 * np.cos(np.pi * left)


def trained(seed: int, tail: float, steps: int = 400) -> Model:
    nouns = tiny.world("digits", seed)
    return Run(seed).fit(
        nouns["model"], nouns["noisy"], Rate(tail), steps=steps, batch_size=8, lr=1e-2, precision="fp32"
    )


def test_areas_are_the_textbook_sums():
    rates = [0.5, 1.0, 1.0, 0.8, 0.3, 0.3, 0.6, 0.1]
    s1, s2 = areas(rates, decay=0.9)
    forward, momentum, annealing, seen = 0.0, 0.0, 0.0, []
    for i, rate in enumerate(rates):
        forward += rate
        drop = rates[i - 1] - rate if i > 1 else 0.0  # up to the first peak nothing counts
        momentum = 0.9 * momentum + drop
        annealing += momentum
        seen.append((forward, annealing))
    assert np.stack([s1, s2], 1) == pytest.approx(np.array(seen))
    assert areas(np.ones(9))[1] == pytest.approx(np.zeros(9))


def test_the_law_comes_back_and_predicts_another_schedule():
    rng = np.random.default_rng(0)
    cosine = 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 800))
    stable = np.r_[np.ones(600), np.linspace(1, 0, 200)]
    truth = np.array([1.5, 2.0, 0.45, 3e-3])
    found = fit(law(truth, *areas(cosine, 0.99)) * np.exp(rng.normal(0, 0.01, 800)), *areas(cosine, 0.99))
    assert law(found, *areas(stable, 0.99))[-1] == pytest.approx(law(truth, *areas(stable, 0.99))[-1], rel=0.01)
    assert (
        fit(law(truth, *areas(np.ones(800))), *areas(np.ones(800)))[3] == 0
    )  # annealing that was never seen is not invented


def test_the_report_says_what_was_seen():
    model = trained(0, 0.3)
    report = AnnealingLaw(share=0.5, decay=0.99)(Run(), model, tiny.world("digits")["test"])
    notes = report.measured[0].notes
    assert notes["annealing"] == "unseen" and notes["drop"] == 0
    assert len(report.measured[0].values) == 200 and len(notes["curve"]["predicted"]) == 400
    assert notes["miss"] == pytest.approx(notes["predicted"] - notes["final"])
    guided = AnnealingLaw(share=0.5, decay=0.99, guide=trained(1, 1.0))(Run(), model, tiny.world("digits")["test"])
    assert guided.measured[0].notes["annealing"] == "seen"


def test_bad_input_is_named():
    nouns = tiny.world("digits")
    with pytest.raises(ValueError, match="no training curve"):
        AnnealingLaw()(Run(), nouns["model"], nouns["test"])
    for fields in ({"share": 1.0}, {"decay": 1.0}, {"skip": 0.6}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            AnnealingLaw(**fields)(Run(), nouns["model"], nouns["test"])
    with pytest.raises(ValueError, match="8 losses"):
        fit([1.0, 2.0], [1, 2], [0, 0])


@cache
def both(seed: int) -> tuple[Model, Model]:
    return trained(seed, 0.3), trained(seed, 1.0)


def measure(seed: int, arm: str) -> float:
    """Miss of the final loss of constant-then-decay, from its constant half and a cosine guide; the rival has no annealing term."""
    model, guide = both(seed)
    notes = AnnealingLaw(decay=0.95, guide=guide, window=0.1)(Run(seed), model, tiny.world("digits")["test"]).measured[0].notes
    if arm == "method":
        return abs(notes["miss"])
    parts = []
    for m, end in ((model, 200), (guide, 400)):
        loss, rate = (np.array(m.about["curve"][k]) for k in ("loss", "rate"))
        parts.append([loss[20:end], np.cumsum(rate)[20:end], np.zeros(end - 20)])
    plain = fit(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    return abs(law(plain, np.cumsum(model.about["curve"]["rate"]), 0.0)[-1] - notes["final"])


CLAIM = Claim(
    method="annealing_law",
    world="digits",
    rival="the power law of the forward area alone",
    quantity="absolute miss of the final training loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
