"""Keeping the best weights: those of the highest accuracy, then of the lowest loss, the first ones among them."""

from __future__ import annotations

from trainlore.primitives.keeping import Best
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_weights_that_were_best_are_handed_on():
    at = world("digits")
    seen = []

    class Watched(Best):
        def _look(self, loop, s):
            super()._look(loop, s)
            seen.append((loop.model.fingerprint, s["score"]))

    part = Watched(rows=at["test"], every=5)
    model = Run(0).fit(at["model"], at["data"], part, steps=22, **{**HOW["digits"], "lr": 0.3})
    assert len(seen) == 6  # before the first step, at 5, 10, 15, 20 and at the end
    best = max(score for _, score in seen)
    first = next(weights for weights, score in seen if score == best)
    assert model.fingerprint == first and seen[-1][1] == best


def test_a_training_that_only_harms_is_undone():
    at = world("digits")
    good = Run(0).fit(at["model"], at["data"], steps=150, **HOW["digits"])
    was = good.fingerprint
    wild = Run(0).fit(good, at["data"], Best(rows=at["test"], every=3), steps=9, **{**HOW["digits"], "lr": 1e3})
    assert wild.fingerprint == was
