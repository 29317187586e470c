"""Data mixing laws: odds by given trainings, and a junk domain is left out."""

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.mix.mixing_laws import MixingLaws
from trainlore.methods.data.mix.uniform_mixture import UniformMixture
from trainlore.nouns import Data
from trainlore.primitives.domains import domain_losses, domains
from trainlore.primitives.probes import best_mixture, mixing_law, tried_mixtures
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

T = np.array([[-1.5, 0.3, 1.2], [0.4, -1.1, 0.7]])  # two held-out domains, three to train on; rows sum to 0
C, K = (1.2, 0.8), (1.5, 2.0)


def planted(shares):
    return np.stack([mixing_law(shares, c, k, t) for c, k, t in zip(C, K, T, strict=True)], 1)


class Fake:
    def __init__(self):
        self.data, self.model = Data.of({"domain": ["a", "b", "b", "c"]}), world("digits")["model"]


def test_given_trainings_need_no_held_out_rows():
    shares = tried_mixtures(3, 8, np.random.default_rng(0))
    runs = tuple((tuple(r), tuple(y)) for r, y in zip(shares.tolist(), planted(shares).tolist(), strict=True))
    loop, part = Fake(), MixingLaws(runs=runs, weights={"0": 3, "1": 1})
    odds = part.odds(loop, part.start(loop))
    best = best_mixture([(c, k, t) for c, k, t in zip(C, K, T, strict=True)], (0.75, 0.25))
    assert [float(odds[[0]].sum()), float(odds[[1, 2]].sum()), float(odds[[3]].sum())] == pytest.approx(best, abs=1e-3)
    assert list(loop.model.about["mixing_laws"]["shares"]) == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "held_out"),
        ({"runs": (((0.5, 0.5), (1.0,)),)}, "runs"),
        ({"runs": (((0.5, 0.3, 0.2), (1.0,)),) * 5}, "different"),
        ({"runs": (((0.5, 0.3, 0.2), (-1.0,)),) * 5}, "above 0"),
        ({"held_out": Data.of({"domain": ["a"]}), "mixtures": 3}, "3 domains need mixtures of at least 4"),
        (
            {
                "runs": tuple((tuple(r), (2.0,)) for r in tried_mixtures(3, 8, np.random.default_rng(0)).tolist()),
                "weights": {"z": 1},
            },
            "z",
        ),
    ],
)
def test_bad_fields_are_named(fields, why):
    with pytest.raises(ValueError, match=why):
        MixingLaws(**fields).start(Fake())


@cache
def sources():
    """Digits from three sources: 0 to 4, 5 to 9, and rows with labels drawn at random, which help neither."""
    data, rng = world("digits")["data"], np.random.default_rng(0)
    label, junk = np.array(data["label"]), np.arange(400) >= 260
    label[junk] = rng.integers(0, 10, junk.sum())
    return data.with_(label=label, domain=np.where(junk, "junk", halves(label)).tolist())


def halves(label):
    """The source that a digit is from."""
    return np.where(np.asarray(label) < 5, "low", "high")


def measure(seed: int, arm: str) -> float:
    """The mean over the two halves of the held-out loss."""
    nouns, run = world("digits", seed), Run(seed)
    held_out, part = nouns["test"].with_(domain=halves(nouns["test"]["label"]).tolist()), UniformMixture()
    if arm == "method":
        part = MixingLaws(held_out=held_out.take(range(200)), mixtures=10, steps=60, lr=HOW["digits"]["lr"])
    model = run.fit(nouns["model"], sources(), part, steps=60, **HOW["digits"])
    rest = held_out.take(range(200, len(held_out)))
    names, code = domains(rest, "domain", "claim")
    return float(domain_losses(run, model, rest, code, len(names)).mean())


CLAIM = Claim(
    method="mixing_laws",
    world="digits",
    rival="uniform_mixture",
    quantity="mean over the domains that count of the held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
