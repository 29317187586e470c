"""Aioli: the matrix solved for, the step, and the rounds."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix import aioli as module
from trainlore.methods.data.mix.aioli import Aioli, law_matrix, positive, probes
from trainlore.methods.data.mix.uniform_mixture import UniformMixture
from trainlore.nouns import Data
from trainlore.primitives.domains import domain_losses, domains, exponentiated
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import HOW, world


def test_a_planted_matrix_is_found():
    planted = torch.tensor(np.random.default_rng(0).normal(size=(2, 3)))
    mixtures = [[0.75, 0.125, 0.125], [0.125, 0.75, 0.125], [0.125, 0.125, 0.75]]
    assert probes(3, 0.75).tolist() == mixtures
    drops = [[sum(planted[i, j] * p[j] for j in range(3)) for p in mixtures] for i in range(2)]
    assert torch.allclose(law_matrix(torch.tensor(drops), 0.75), planted)


def test_the_matrix_is_made_positive_and_the_shares_take_an_exponential_step():
    raw = torch.tensor([[0.3, -0.1], [0.2, 0.0]], dtype=torch.float64)
    even = [[0.4 / 0.8, 0.0], [0.3 / 0.8, 0.1 / 0.8]]
    assert torch.allclose(positive(raw), torch.tensor(even, dtype=torch.float64))
    assert positive(torch.zeros(2, 2)).tolist() == [[0.25, 0.25], [0.25, 0.25]]
    up = [0.2 * math.exp(0.5 * (even[0][0] + even[1][0])), 0.8 * math.exp(0.5 * 0.125)]
    told = exponentiated(torch.tensor([0.2, 0.8]), positive(raw).sum(0), 0.5)
    assert told.tolist() == pytest.approx([u / sum(up) for u in up])


class Fake:
    """As much of a loop as the part looks at."""

    def __init__(self, data, steps):
        self.data, self.steps, self.t, self.model, self.run = data, steps, 0, None, None

    @property
    def done(self):
        return self.t / self.steps

    def rng(self, *key):
        return Run(0).rng(*key)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_rounds_by_hand(monkeypatch, ema):
    """Two rounds against a textbook: trials in random order, drops averaged, A solved for, the rest at the new shares."""
    data = Data.of({"domain": ["a"] * 2 + ["b"] * 3})
    told = iter(np.random.default_rng(1).random((100, 2)))
    seen = []

    def losses(*_):
        seen.append(next(told))
        return torch.from_numpy(seen[-1])

    monkeypatch.setattr(module, "domain_losses", losses)
    part, loop = (
        Aioli(held_out=data, every=12, sweeps=2, probe=2, own=0.8, eta=0.7, ema=ema, shares={"a": 0.3}),
        Fake(data, 30),
    )
    s, drawn = part.start(loop), []
    for _ in range(24):
        odds = part.odds(loop, s)
        drawn.append(float(odds[:2].sum()))
        assert float(odds.sum()) == pytest.approx(1)
        loop.t += 1
    share, mixed = [0.3, 0.7], None
    for r in range(2):
        at, order = drawn[12 * r : 12 * r + 12], []
        for i in range(4):
            assert at[2 * i] == at[2 * i + 1]
            order.append(0 if at[2 * i] == pytest.approx(0.8) else 1)
        assert sorted(order[:2]) == sorted(order[2:]) == [0, 1]
        mine, drops = seen[5 * r : 5 * r + 5], np.zeros((2, 2))
        for i, j in enumerate(order):
            drops[:, j] += (mine[i] - mine[i + 1]) / 2
        matrix = np.stack([np.linalg.solve([[0.8, 0.2], [0.2, 0.8]], row) for row in drops])
        matrix = matrix - min(0, matrix.min())
        matrix /= matrix.sum()
        mixed = matrix if mixed is None or ema is None else ema * mixed + (1 - ema) * matrix
        base = share if ema is None else [0.5, 0.5]
        raw = [base[j] * math.exp(0.7 * mixed[:, j].sum()) for j in range(2)]
        share = [x / sum(raw) for x in raw]
        assert at[8:] == pytest.approx([share[0]] * 4)


def test_the_prior_comes_first():
    data = Data.of({"domain": ["a"] * 2 + ["b"] * 3})
    part, loop = Aioli(held_out=data, shares={"a": 0.9}, prior=0.5), Fake(data, 10)
    s = part.start(loop)
    assert float(part.odds(loop, s)[:2].sum()) == pytest.approx(0.9) and s["since"] == -1


@pytest.mark.parametrize(
    "fields",
    [{"every": 16}, {"own": 0.5}, {"own": 1.1}, {"sweeps": 0}, {"prior": 0.5}, {"ema": 1.0}, {"by": "nothing"}],
)
def test_bad_fields_are_named(fields):
    data = Data.of({"domain": ["a", "b"]})
    with pytest.raises(ValueError, match=next(iter(fields)) if "by" not in fields else "nothing"):
        Aioli(**{"held_out": data, "sweeps": 4, "probe": 2, **fields}).start(Fake(data, 10))
    with pytest.raises(ValueError, match="one domain"):
        Aioli(held_out=data).start(Fake(Data.of({"domain": ["a", "a"]}), 10))


@cache
def texts(n, seed):
    """Texts of three domains, of which the third blends the first two."""
    return world("text")["model"].encode(Data(two_domains.make(n, seed=seed, domains=("a", "b", "target"))))


def measure(seed: int, arm: str) -> float:
    """The mean over three domains of the held-out loss."""
    model, run, held_out = world("text", seed)["model"], Run(seed), texts(60, 12)
    part = UniformMixture()
    if arm == "method":
        part = Aioli(held_out=held_out, every=15, sweeps=1, probe=2, eta=0.5)
    run.fit(model, texts(300, 11), part, steps=45, **HOW["text"])
    names, code = domains(held_out, "domain", "claim")
    return float(domain_losses(run, model, held_out, code, len(names)).mean())


CLAIM = Claim(
    method="aioli",
    world="text",
    rival="uniform_mixture",
    quantity="mean over domains of the held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
