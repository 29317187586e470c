"""Domain upsampling: the shares named, and only at the end."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.domain_upsampling import DomainUpsampling, upsampled
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_rest_keeps_its_proportions():
    assert upsampled(np.array([10, 30, 60]), ["a", "b", "c"], {"a": 0.5}) == pytest.approx(
        [0.5, 0.5 * 30 / 90, 0.5 * 60 / 90]
    )
    assert upsampled(np.array([10, 90]), ["a", "b"], {"a": 0.3, "b": 0.7}) == pytest.approx([0.3, 0.7])


@pytest.mark.parametrize("shares", [{"z": 0.5}, {"a": 1.2}, {"a": -0.1}, {"a": 0.2, "b": 0.2}])
def test_shares_that_cannot_be(shares):
    with pytest.raises(ValueError, match="domain_upsampling"):
        upsampled(np.array([10, 90]), ["a", "b"], shares)


class Fake:
    def __init__(self, data, done):
        self.data, self.done = data, done


def test_it_waits_for_the_end():
    data = world("text")["data"]
    part = DomainUpsampling(shares={"b": 0.9}, last=0.25)
    s = part.start(Fake(data, 0.0))
    assert part.odds(Fake(data, 0.74), s) is None
    odds = part.odds(Fake(data, 0.75), s)
    assert float(odds[torch.tensor([d == "b" for d in data["domain"].to_pylist()])].sum()) == pytest.approx(0.9)
    assert DomainUpsampling(shares={"b": 0.9}, last=0.0).odds(Fake(data, 1.0), s) is None


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
    """The held-out loss of the rare domain, raised to half of the draws over the last fifth of training, or not."""
    nouns, run = world("text", seed), Run(seed)
    parts = [DomainUpsampling(shares={"b": 0.5}, last=0.2)] if arm == "method" else []
    model = run.fit(nouns["model"], skewed(nouns["data"]), *parts, steps=60, **HOW["text"])
    return by_domain(run, model, nouns["held_out"])["b"]


CLAIM = Claim(
    method="domain_upsampling",
    world="text",
    rival="the data's own mixture to the end",
    quantity="held-out loss of the domain that is raised",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
