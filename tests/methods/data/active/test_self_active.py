from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.active.self_active import SelfActive
from trainlore.methods.measure.evaluate.held_out_loss import HeldOutLoss
from trainlore.nouns import Data
from trainlore.primitives.continuing import prompts
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import llama, world


class Watched(Run):
    """A run that remembers what was trained on, and from which weights."""

    def fit(self, model, rows, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, list(rows.text("text")))]
        return super().fit(model, rows, *parts, **how)


def test_rounds_start_alike_and_what_is_held_out_comes_back_rewritten():
    at, run = world("text"), Watched(0)
    texts, start = list(at["data"].text("text")), at["model"].fingerprint
    model = SelfActive(rounds=3, steps=4, batch_size=8, most=6)(run, at["model"], at["data"])
    assert [f for f, _ in run.fits] == [start] * 3
    first, second, third = (set(t) for _, t in run.fits)
    assert len(run.fits[0][1]) == 240 and first <= set(texts)
    made = [t for t in second if t not in texts]
    assert any(t not in texts and t not in second for t in third)
    assert 0 < len(made) <= 12 and model.about["self_active"][0]["made"] == 12
    starts, _ = prompts([t for t in texts if t not in first], 0.15)
    assert all(any(t.startswith(s + " ") for s in starts) for t in made)


def test_some_of_every_domain_is_trained_on():
    at, run = world("text"), Watched(0)
    rows = Data.of({"text": [f"bada gila bada {w}" for w in ("kima", "tona", "bade")], "domain": ["a", "a", "b"]})
    SelfActive(rounds=1, steps=1, held_out=0.9, batch_size=2)(run, at["model"], rows)
    assert len(run.fits[0][1]) == 2


def test_bad_input_is_named():
    at = world("text")
    for fields, says in (
        ({"rounds": 0}, "rounds=0"),
        ({"held_out": 1.0}, "held_out=1"),
        ({"cut": 1.0}, "cut=1"),
        ({"most": 0}, "most=0"),
    ):
        with pytest.raises(ValueError, match=says):
            SelfActive(**fields)(at["model"], at["data"])
    with pytest.raises(ValueError, match="at least 2 rows"):
        SelfActive()(at["model"], at["data"].take([0]))
    with pytest.raises(ValueError, match="'text'"):
        SelfActive()(at["model"], Data.of({"label": np.array([1])}))
    digits = world("digits")
    with pytest.raises(ValueError, match="classifier"):
        SelfActive()(digits["model"], at["data"])


def measure(seed: int, arm: str) -> float:
    """Loss on other texts of two small domains, after the same steps on the texts alone or with rewritten ones."""
    run, model = Run(seed), llama(seed)
    rows = Data(two_domains.make(50, seed=seed))
    how = {"steps": 30, "batch_size": 8, "lr": 3e-3}
    if arm == "method":
        model = SelfActive(rounds=2, **how)(run, model, rows)
    else:
        model = run.fit(model, model.encode(rows), **how)
    return HeldOutLoss()(run, model, model.encode(Data(two_domains.make(60, seed=9999)))).value


CLAIM = Claim(
    method="self_active",
    world="text",
    rival="as many steps on the given texts alone",
    quantity="held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
