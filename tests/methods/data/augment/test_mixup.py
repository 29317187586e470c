from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.mixup import Mixup, beta, mix
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_mixing_is_row_by_row():
    x, other = torch.arange(12, dtype=torch.float64).reshape(3, 2, 2), torch.tensor([2, 0, 1])
    for share in (0.25, torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)):
        got = mix(x, share, other)
        for i in range(3):
            lam = share if isinstance(share, float) else share[i]
            assert torch.equal(got[i], lam * x[i] + (1 - lam) * x[other[i]])


@pytest.mark.parametrize("alpha", [0.02, 0.4, 1.0, 8.0])
def test_shares_are_beta(alpha):
    rng = torch.Generator().manual_seed(0)
    drawn = np.array([beta(alpha, rng) for _ in range(4000)])
    assert ((drawn >= 0) & (drawn <= 1)).all()
    assert drawn.mean() == pytest.approx(0.5, abs=0.03)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


class Spied(Mixup):
    """mixup that remembers what it made."""

    seen = []

    def batch(self, loop, s, batch):
        made = super().batch(loop, s, batch)
        self.seen.append((batch, made))
        return made


def test_inputs_and_targets_are_mixed_alike():
    at = world("digits")
    Spied.seen.clear()
    Run(0).fit(at["model"], at["data"], Spied(alpha=1.0), steps=3, **HOW["digits"])
    for before, after in Spied.seen:
        shares = after["labels"]
        assert shares.shape == (32, 10) and torch.allclose(shares.sum(1), torch.ones(32))
        whole = torch.eye(10)[before["labels"]]
        # every mixed target lies on the line from the row's own to another row's, and its input on the same place of it
        pair = torch.stack(
            [((shares[i] - whole[i]) - (1 - _share(shares, whole)) * (whole - whole[i])).norm(dim=1) for i in range(32)]
        )
        i, j = np.nonzero((pair < 1e-5).numpy())
        lam = _share(shares, whole)
        fits = [
            (after["features"][a] - lam * before["features"][a] - (1 - lam) * before["features"][b]).norm() < 1e-4
            for a, b in zip(i, j)
        ]
        assert len({a for a, ok in zip(i, fits) if ok}) == 32


def _share(shares, whole):
    """The batch's one share, read off a row that met another class."""
    own = (shares * whole).sum(1)
    return own[own < 1 - 1e-6][0].item()


def test_the_authors_alpha_and_bad_input():
    at = world("text")
    with pytest.raises(ValueError, match="token ids"):
        Run(0).fit(at["model"], at["data"], Mixup(), steps=1, **HOW["text"])
    at = world("digits")
    with pytest.raises(ValueError, match="alpha=-1"):
        Run(0).fit(at["model"], at["data"], Mixup(alpha=-1.0), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    at, run = world("digits", seed), Run(seed)
    parts = [Mixup(alpha=1.0)] if arm == "method" else []
    model = run.fit(at["model"], data("digits/noisy").take(range(400)), *parts, steps=400, **HOW["digits"])
    return Accuracy()(run, model, at["test"]).value


CLAIM = Claim(
    method="mixup",
    world="digits",
    rival="plain training",
    quantity="test accuracy after training on a fifth of wrong labels",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
