"""Data mixing laws: planted laws are found, their optimum too, and a junk domain is left out."""

import math
from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.mix.mixing_laws import MixingLaws, best_mixture, fit_law, law, tried
from trainlore.methods.data.mix.uniform_mixture import UniformMixture
from trainlore.nouns import Data
from trainlore.primitives.domains import domain_losses, domains
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

T = np.array([[-1.5, 0.3, 1.2], [0.4, -1.1, 0.7]])  # two held-out domains, three to train on; rows sum to 0
C, K = (1.2, 0.8), (1.5, 2.0)


def planted(shares, noise=0.0):
    y = np.stack([law(shares, c, k, t) for c, k, t in zip(C, K, T, strict=True)], 1)
    return y + noise * np.random.default_rng(1).normal(size=y.shape)


def test_the_law_term_by_term():
    r = (0.2, 0.3, 0.5)
    by_hand = 1.2 + 1.5 * math.exp(sum(t * x for t, x in zip(T[0], r, strict=True)))
    assert law(np.array([r, r]), 1.2, 1.5, T[0]) == pytest.approx([by_hand, by_hand])


def test_a_planted_law_is_found():
    shares = tried(3, 12, np.random.default_rng(0))
    assert np.allclose(shares.sum(1), 1) and shares[0] == pytest.approx([1 / 3] * 3)
    for i in range(2):
        c, k, t = fit_law(shares, planted(shares)[:, i])
        assert (c, k) == pytest.approx((C[i], K[i]), abs=1e-3) and t == pytest.approx(T[i], abs=1e-3)


def test_the_planted_optimum_is_approached():
    """Against a grid over all shares, from noisy losses of few trainings; better the less noise there is."""
    grid = np.array([(i, j, 60 - i - j) for i in range(61) for j in range(61 - i)]) / 60
    shares, far = tried(3, 16, np.random.default_rng(0)), []
    true = planted(grid).sum(1)
    for noise in (0.03, 0.0):
        laws = [fit_law(shares, y) for y in planted(shares, noise).T]
        best = best_mixture(laws, (1, 1))
        assert best.min() >= 0 and best.sum() == pytest.approx(1)
        far.append(float(planted(best[None]).sum() - true.min()))
    assert (
        far[0] < 0.05 * (true.max() - true.min())
        and abs(far[1]) < 1e-3 < planted(np.full((1, 3), 1 / 3)).sum() - true.min()
    )


def test_one_target_is_served_from_a_corner():
    laws = [(C[0], K[0], T[0])]
    assert best_mixture(laws, (1,)) == pytest.approx([1, 0, 0], abs=1e-6)


class Fake:
    def __init__(self):
        self.data, self.model = Data.of({"domain": ["a", "b", "b", "c"]}), world("digits")["model"]


def test_given_trainings_need_no_held_out_rows():
    shares = tried(3, 8, np.random.default_rng(0))
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
        ({"held_out": Data.of({"domain": ["a"]}), "mixtures": 0}, "mixtures"),
        (
            {
                "runs": tuple((tuple(r), (2.0,)) for r in tried(3, 8, np.random.default_rng(0)).tolist()),
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
