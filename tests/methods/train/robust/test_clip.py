from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.robust.clip import Clip, shrink
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_long_gradients_get_the_norm_and_short_ones_stay():
    grads = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64)]
    total = sum(v * v for g in grads for v in g.reshape(-1).tolist()) ** 0.5
    assert shrink(grads, 1.0).item() == pytest.approx(1.0 / total)
    assert shrink(grads, 5.0).item() == 1.0 and shrink(grads, 7.0).item() == 1.0
    assert shrink([torch.zeros(3)], 1.0).item() == 1.0


class Lengths(Clip):
    """clip that remembers the lengths before and after."""

    seen = []

    def gradient(self, loop, s, inner):
        def spied():
            inner()
            self.seen.append(_length(loop))

        super().gradient(loop, s, spied)
        self.seen.append(_length(loop))


def _length(loop):
    return torch.cat([p.grad.reshape(-1) for p in loop.model.net.parameters()]).norm().item()


def test_in_training_no_gradient_is_longer_and_directions_stay():
    at = world("digits")
    Lengths.seen.clear()
    Run(0).fit(at["model"], at["data"], Lengths(norm=0.3), steps=10, **HOW["digits"])
    before, after = np.array(Lengths.seen).reshape(-1, 2).T
    assert (before > 0.3).any() and np.allclose(after, np.minimum(before, 0.3), rtol=1e-5)


def test_bad_norms_are_named():
    for norm in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="norm="):
            Clip(norm=norm).start(None)


def measure(seed: int, arm: str) -> float:
    """Digits where one row in fifty was recorded a thousand times too bright: rare steps whose gradients explode."""
    at, run = world("digits", seed), Run(seed)
    features = at["data"]["features"].copy()
    features[::50] *= 1000
    parts = [Clip(norm=1.0)] if arm == "method" else []
    model = run.fit(at["model"], at["data"].with_(features=features), *parts, steps=150, **HOW["digits"])
    return Accuracy()(run, model, at["test"]).value


CLAIM = Claim(
    method="clip",
    world="digits",
    rival="plain training",
    quantity="test accuracy after training with rare exploding gradients",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
