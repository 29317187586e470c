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
    """A schedule for the test, constant and then falling over `tail`, or a cosine; held-out losses are noted every fifth step."""

    def __init__(self, tail: float, held: dict, seen: list) -> None:
        self.tail, self.held, self.seen = tail, held, seen

    def rate(self, loop, s):
        left = 1 - loop.t / loop.steps
        return min(1.0, left / self.tail) if self.tail < 1 else 0.5 - 0.5 * float(np.cos(np.pi * left))

    def watch(self, loop, s, record):
        if record["t"] % 5 == 0:
            self.seen.append((record["t"], float(loop.losses(self.held).mean()), record["rate"]))


@cache
def trained(seed: int, tail: float, runs: int = 3) -> Model:
    """An MLP fitted to digits whose curve is the held-out loss, as in the paper, averaged over runs: one small run is noise."""
    curves = []
    for one in range(runs):
        nouns, seen = tiny.world("digits", runs * seed + one), []
        held = nouns["test"].batch(range(len(nouns["test"])))
        how = {"steps": 200, "batch_size": 4, "lr": 1e-2, "precision": "fp32"}
        model = Run(runs * seed + one).fit(nouns["model"], nouns["data"], Rate(tail, held, seen), **how)
        curves.append(seen)
    t, loss, rate = np.moveaxis(np.mean(curves, 0), 1, 0)
    model.about["curve"] = {"t": t.astype(int).tolist(), "loss": loss.tolist(), "rate": rate.tolist()}
    return model


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
    report = AnnealingLaw(share=0.5, decay=0.95)(Run(), model, tiny.world("digits")["test"])
    notes = report.measured[0].notes
    assert notes["annealing"] == "unseen" and notes["drop"] == 0
    assert len(report.measured[0].values) == 20 and len(notes["curve"]["predicted"]) == 40
    assert notes["miss"] == pytest.approx(notes["predicted"] - notes["final"])
    guided = AnnealingLaw(share=0.5, decay=0.95, guide=trained(0, 1.0))(Run(), model, tiny.world("digits")["test"])
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


def measure(seed: int, arm: str) -> float:
    """Miss of the final loss of constant-then-decay, from its constant half and a cosine guide; the rival has no annealing term."""
    model, guide = trained(seed, 0.3), trained(seed, 1.0)
    notes = AnnealingLaw(decay=0.95, guide=guide)(Run(seed), model, tiny.world("digits")["test"]).measured[0].notes
    if arm == "method":
        return abs(notes["miss"])
    seen = []
    for m, end in ((guide, 40), (model, 20)):
        t, loss, rate = (np.array(m.about["curve"][k]) for k in ("t", "loss", "rate"))
        area = np.cumsum(np.interp(np.arange(1, 201), t, rate))[t - 1]
        seen.append([loss[2:end], area[2:end], np.zeros(end - 2)])
    plain = fit(*(np.concatenate(column) for column in zip(*seen, strict=True)))
    return abs(law(plain, area, 0.0)[-1] - notes["final"])


CLAIM = Claim(
    method="annealing_law",
    world="digits",
    rival="the power law of the forward area alone",
    quantity="absolute miss of the final held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
