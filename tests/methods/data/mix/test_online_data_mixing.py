"""Online data mixing: the bandit's arithmetic, step by step, and what it reads."""

import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.online_data_mixing import OnlineDataMixing, exploration, policy, proportional
from trainlore.methods.data.mix.uniform_mixture import UniformMixture
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def textbook(form, smooth, seen, start):
    """Rewards and shares by the formulas, one domain at a time; `seen` is a list of {domain: mean loss}."""
    k, reward, shares, before = len(start), [0.0] * len(start), [], 1 / len(start)
    for t, losses in enumerate(seen, 1):
        now = min(1 / k, math.sqrt(math.log(k) / (k * t)))
        if form == "paper":
            total = sum(math.exp(before * r) for r in reward)
            share = [(1 - k * now) * math.exp(before * r) / total + now for r in reward]
        else:
            share = [(1 - k * now) * (r / sum(reward) if sum(reward) else 1 / k) + now for r in reward]
        shares.append(share)
        for i, loss in losses.items():
            gain = loss / share[i] if form == "paper" else math.exp(loss)
            reward[i] = smooth * reward[i] + (1 - smooth) * gain
        before = now
    return shares


class Fake:
    """As much of a loop as the part looks at."""

    def __init__(self, data, steps):
        self.data, self.steps, self.t = data, steps, 0
        self.model = type("M", (), {"kind": "classifier"})

    @property
    def done(self):
        return self.t / self.steps


@pytest.mark.parametrize("form", ["paper", "released"])
def test_shares_follow_the_formulas(form):
    data = world("digits")["data"].take(range(6)).with_(domain=["a", "b", "b", "c", "c", "c"])
    part, loop = OnlineDataMixing(form=form, smooth=0.7, warmup=0.0), Fake(data, 30)
    s, rng, seen, shares = part.start(loop), np.random.default_rng(0), [], []
    for _ in range(30):
        odds = part.odds(loop, s)
        shares.append([float(odds[[0]].sum()), float(odds[[1, 2]].sum()), float(odds[[3, 4, 5]].sum())])
        rows, losses = rng.choice(6, 3, replace=False), rng.random(3) * 3
        part.loss(loop, s, {"row": torch.from_numpy(rows)}, None, lambda batch, out: torch.from_numpy(losses))  # noqa: B023
        by = {}
        for row, loss in zip(rows, losses, strict=True):
            by.setdefault([0, 1, 1, 2, 2, 2][row], []).append(loss)
        seen.append({i: float(np.mean(v)) for i, v in by.items()})
        loop.t += 1
        part.watch(loop, s, {})
    assert np.allclose(shares, textbook(form, 0.7, seen, [0, 0, 0]), atol=1e-9)


def test_the_floor_is_exp3_s():
    assert exploration(4, 0) == exploration(4, 1) == 0.25
    assert exploration(22, 1000) == pytest.approx(math.sqrt(math.log(22) / 22000))
    for share in (policy(torch.tensor([5.0, 0.0]), 0.1, 0.2), proportional(torch.tensor([5.0, 0.0]), 0.1)):
        assert float(share.sum()) == pytest.approx(1) and float(share.min()) >= 0.1


def test_warmup_draws_the_data_s_own_mixture():
    data = world("digits")["data"].take(range(4)).with_(domain=["a", "b", "b", "b"])
    part, loop = OnlineDataMixing(warmup=0.5), Fake(data, 10)
    s = part.start(loop)
    assert part.odds(loop, s) is None
    loop.t = 5
    assert part.odds(loop, s) is not None


def test_bad_fields_are_named():
    with pytest.raises(ValueError, match="smooth"):
        OnlineDataMixing(smooth=1.0).start(Fake(world("digits")["data"], 1))


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
    part = OnlineDataMixing() if arm == "method" else UniformMixture()
    model = run.fit(nouns["model"], skewed(nouns["data"]), part, steps=60, **HOW["text"])
    return float(np.mean(list(by_domain(run, model, nouns["held_out"]).values())))


CLAIM = Claim(
    method="online_data_mixing",
    world="text",
    rival="uniform_mixture",
    quantity="mean over domains of the held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
