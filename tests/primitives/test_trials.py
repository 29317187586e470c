from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from trainlore.errors import Bad
from trainlore.nouns import Report
from trainlore.primitives.trials import scored, tuned
from trainlore.runs import Run
from trainlore.verbs import Measure, Part
from trainlore.worlds.tiny import world

HOW = {"steps": 3, "batch_size": 16, "precision": "fp32"}


class Far(Measure):
    """How far the weights went; the lower the better."""

    card = {"name": "far"}

    def __call__(self, run, model, data):
        return Report.of("length", [sum(float(p.detach().norm()) for p in model.net.parameters())], better="lower")


@dataclass(frozen=True, kw_only=True, eq=False)
class Scaled(Part):
    """inner * factor, and what was seen of it."""

    card = {"name": "scaled"}
    factor: float = 1.0

    def loss(self, loop, s, batch, out, inner):
        if self.factor < 0:
            raise Bad("a factor below 0")
        return self.factor * inner(batch, out)


def test_names_and_ranges_are_checked():
    assert tuned(None, 0.01, ()) == {"lr": (0.001, 0.1)}
    given = {"weight_decay": (1e-4, 1e-2), "scaled.factor": (0.5, 2.0)}
    assert tuned(given, 0.01, (Scaled(),)) == given
    for tune, said in (({"depth": (1, 2)}, "depth"), ({"scaled.other": (1, 2)}, "scaled.other"),
                       ({"lr": (0.0, 1.0)}, "low <= high"), ({"lr": (0.2, 0.1)}, "0.2 to 0.1")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            tuned(tune, 0.01, (Scaled(),))


def test_a_trial_is_the_training_with_its_values():
    at = world("digits")
    run, one, other = Run(0), at["model"].copy(), at["model"].copy()
    values = {"lr": 0.02, "scaled.factor": 3.0, "share": 0.5}
    got = scored(run, one, at["data"], values, (Scaled(),), Far(), at["test"], "order", 1, lr=0.5, **HOW)
    rows = at["data"].take(run.numpy("order", 1).permutation(len(at["data"])))
    run.fit(other, rows, Scaled(factor=3.0), lr=0.02, **HOW)
    assert one.fingerprint == other.fingerprint != at["model"].fingerprint
    assert got == pytest.approx(-Far()(run, other, at["test"]).value) and got < 0


def test_a_training_that_diverges_scores_nothing_and_other_faults_are_heard():
    at, run = world("digits"), Run(0)
    wild = {"scaled.factor": float("nan")}
    assert math.isnan(scored(run, at["model"], at["data"], wild, (Scaled(),), Far(), at["test"], "a", lr=0.1, **HOW))
    with pytest.raises(ValueError, match="below 0"):
        odd = {"scaled.factor": -1.0}
        scored(run, world("digits")["model"], at["data"], odd, (Scaled(),), Far(), at["test"], "a", lr=0.1, **HOW)
