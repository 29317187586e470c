"""Uniform mixture: every domain the same sum of odds."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.mix.uniform_mixture import UniformMixture, even
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_every_domain_has_the_same_sum():
    code = np.array([0, 0, 0, 2, 1, 0, 2])
    odds = even(code)
    for k in range(3):
        mine = [odds[i] for i in range(len(code)) if code[i] == k]
        assert sum(mine) == pytest.approx(1 / 3) and len(set(mine)) == 1


def test_a_rare_domain_is_drawn_as_often():
    nouns = world("digits")
    data = nouns["data"].with_(domain=["rare"] * 20 + ["common"] * 380)
    seen = []

    def drawn(*parts):
        from trainlore.verbs import Part

        class Spy(Part):
            def batch(self, loop, s, batch):
                seen.append(float((batch["row"] < 20).float().mean()))
                return batch

        seen.clear()
        Run(0).fit(world("digits")["model"], data, Spy(), *parts, steps=40, **HOW["digits"])
        return np.mean(seen)

    assert drawn() < 0.1 < 0.35 < drawn(UniformMixture()) < 0.55  # 20 rows cannot fill 16 places of every batch


def test_it_needs_the_column():
    with pytest.raises(ValueError, match="domain"):
        Run(0).fit(
            world("digits")["model"],
            Data.of({"features": np.zeros((4, 64), np.float32), "label": [0, 1, 2, 3]}),
            UniformMixture(),
            steps=1,
        )


def by_domain(run, model, held_out):
    """Mean held-out loss of each domain."""
    losses = run.infer(model, held_out, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).numpy()
    domain = np.asarray(held_out["domain"])
    return {str(d): float(losses[domain == d].mean()) for d in np.unique(domain)}


def skewed(data):
    """All rows of domain a and a fifth of those of b."""
    b = np.asarray(data["domain"]) == "b"
    return data.take(np.sort(np.concatenate([np.flatnonzero(~b), np.flatnonzero(b)[::5]])))


def measure(seed: int, arm: str) -> float:
    """The mean over two domains of the held-out loss, trained where one has a fifth of the other's rows."""
    nouns, run = world("text", seed), Run(seed)
    parts = [UniformMixture()] if arm == "method" else []
    model = run.fit(nouns["model"], skewed(nouns["data"]), *parts, steps=60, **HOW["text"])
    return float(np.mean(list(by_domain(run, model, nouns["held_out"]).values())))


CLAIM = Claim(
    method="uniform_mixture",
    world="text",
    rival="the data's own mixture",
    quantity="mean over domains of the held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
