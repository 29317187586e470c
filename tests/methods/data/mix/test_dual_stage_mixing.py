"""DMT: who is drawn in which stage, and what of the special skill is left."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.dual_stage_mixing import DualStageMixing, reminders
from trainlore.nouns import Data
from trainlore.primitives.domains import domain_losses, domains
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

DATA = Data.of({"domain": ["math"] * 16 + ["chat"] * 40 + ["code"] * 8})


class Fake:
    def __init__(self, done=0.0, data=DATA):
        self.data, self.done = data, done

    def rng(self, *key):
        return Run(0).rng(*key)


def test_a_share_of_each_special_domain_is_kept():
    code = domains(DATA, "domain", "x")[1]
    kept = reminders(code, np.array([1, 2]), 0.25, Run(0).rng("x"))
    assert [int(kept[code == k].sum()) for k in range(3)] == [0, 2, 4]
    assert reminders(code, np.array([1, 2]), 1 / 256, Run(0).rng("x")).sum() == 2  # a row of each at least
    assert not reminders(code, np.array([1, 2]), 0.0, Run(0).rng("x")).any()


def test_the_stages():
    part = DualStageMixing(special=("math", "code"), keep=0.25)
    s = part.start(Fake())
    assert s["first"] == pytest.approx(24 / (24 + 40 + 6))  # as many passes over both
    special = torch.tensor([d != "chat" for d in DATA["domain"].to_pylist()])
    assert torch.equal(part.odds(Fake(0.34), s), special.float())
    second = part.odds(Fake(0.35), s)
    assert (
        second[~special].tolist() == [1.0] * 40
        and float(second[special].sum()) == 6
        and second is part.odds(Fake(0.9), s)
    )
    off = DualStageMixing(special=("math",), keep=1.0, first=0.0)
    assert off.odds(Fake(0.0), off.start(Fake())) is None


@pytest.mark.parametrize(
    "fields",
    [{"special": ("maths",)}, {"special": ()}, {"special": ("math", "chat", "code")}, {"keep": 1.5}, {"first": -0.1}],
)
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        DualStageMixing(**{"special": ("math",), **fields}).start(Fake())


def measure(seed: int, arm: str) -> float:
    """The held-out loss of the special domain after both stages; an eighth of its rows stays in the second, or none."""
    nouns, run = world("text", seed), Run(seed)
    part = DualStageMixing(special=("a",), keep=1 / 8 if arm == "method" else 0.0)
    model = run.fit(nouns["model"], nouns["data"], part, steps=40, **HOW["text"])
    names, code = domains(nouns["held_out"], "domain", "claim")
    return float(domain_losses(run, model, nouns["held_out"], code, len(names))[0])


CLAIM = Claim(
    method="dual_stage_mixing",
    world="text",
    rival="the same stages, none of the special rows in the second",
    quantity="held-out loss of the special domain",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
