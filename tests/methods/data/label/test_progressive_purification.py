from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.label.progressive_purification import (
    ProgressivePurification,
    disambiguated,
    likely,
    purified,
)
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_the_formulas_against_loops():
    rng = torch.Generator().manual_seed(0)
    logits, sets = 3 * torch.randn(20, 5, generator=rng), torch.rand(20, 5, generator=rng) < 0.5
    sets[:, 0] = True
    shares, p = disambiguated(logits, sets), logits.softmax(-1)
    left, more = purified(shares, sets, 0.2), likely(p, torch.full((20,), 2), 0.3)
    for i in range(20):
        whole = sum(float(p[i, k]) for k in range(5) if sets[i, k])
        top = max(float(p[i, k]) for k in range(5) if sets[i, k])
        for k in range(5):
            assert shares[i, k].item() == pytest.approx(float(p[i, k]) / whole if sets[i, k] else 0, rel=1e-4)
            assert left[i, k].item() == (bool(sets[i, k]) and float(p[i, k]) >= 0.2 * top)
            assert more[i, k].item() == (k == 2 or p[i, k] >= 0.3 * p[i].max())
    far = torch.tensor([[0.0, -200.0, 0.0]])  # a softmax over all would underflow to no candidate at all
    assert disambiguated(far, torch.tensor([[False, True, False]])).tolist() == [[0.0, 1.0, 0.0]]


def partial(rows, seed=0):
    c = np.random.default_rng(seed).random((len(rows), 10)) < 0.3
    c[np.arange(len(rows)), rows["label"]] = True
    return rows.with_(candidates=c.astype(np.int64)).without("label")


def test_sets_only_shrink_after_the_warm_up_and_the_threshold_rises_when_nothing_changes():
    part = ProgressivePurification(threshold=0.3, growth=0.5, warm_up=2.0, window=2)
    rows = partial(world("digits")["data"].take(range(8)))
    loop = SimpleNamespace(model=world("digits")["model"], data=rows, device=torch.device("cpu"), size=4, t=0)
    s = part.start(loop)
    first, sizes, thresholds = s["candidates"].clone(), [], []
    batch = {"row": torch.arange(8), "labels": None}
    out = torch.linspace(-3, 3, 10).repeat(8, 1)
    for t in range(1, 17):
        loop.t = t
        loss = part.loss(loop, s, batch, out)
        assert loss.shape == (8,) and loss.isfinite().all()
        part.watch(loop, s, {})
        sizes.append(int(s["candidates"].sum()))
        thresholds.append(s["threshold"])
        assert not (s["candidates"] & ~first).any() and s["candidates"].any(1).all()
        assert torch.allclose(s["confidence"].sum(1), torch.ones(8))
    whole = int(first.sum())
    assert sizes[2] == whole and sizes[3] < whole  # epoch 2 ends at step 4
    assert thresholds[3] == 0.3 and thresholds[-1] == pytest.approx(0.45)  # and no higher: it stops above 0.4
    never = ProgressivePurification(threshold=0.0, warm_up=0.0, window=1)
    assert torch.equal(purified(s["confidence"], first, never.threshold), first)


def test_the_authors_defaults_and_the_labels_are_not_looked_at():
    part = ProgressivePurification()
    assert (part.threshold, part.growth, part.warm_up, part.window) == (1e-3, 1e-3, 20, 5)
    at = world("digits")
    rows = partial(at["data"])
    found = []
    for label in (None, np.zeros(400, np.int64)):
        given = rows if label is None else rows.with_(label=label)
        model = Run(0).fit(world("digits")["model"], given, ProgressivePurification(), steps=3, **HOW["digits"])
        found.append(model.fingerprint)
    assert found[0] == found[1]


def test_bad_input_is_named():
    at = world("digits")
    rows, empty = at["data"].take(range(4)), np.ones((4, 10), np.int64)
    empty[2] = 0
    broken = at["teacher"].copy()
    next(broken.net.parameters()).data[:] = float("nan")
    for given, fields, words in (
        (rows, {}, "needs column 'candidates'"),
        (rows.with_(candidates=empty), {}, "1 rows have no candidate, the first 2"),
        (rows.with_(candidates=np.full((4, 10), 2)), {}, "0 or 1"),
        (rows.with_(candidates=np.ones((4, 3), np.int64)), {}, "of 3 classes"),
        (rows, {"doubts": at["teacher"], "doubt": 0.0}, "doubt=0"),
        (rows.with_(label=np.array([0, 1, 2, 10])), {"doubts": at["teacher"]}, "labels run to 10"),
        (rows, {"doubts": broken}, "shares that `doubts` gives are not finite"),
        (rows, {"threshold": 1.0}, "threshold=1"),
        (rows, {"window": 0}, "window=0"),
    ):
        with pytest.raises(ValueError, match=words):
            Run(0).fit(at["model"], given, ProgressivePurification(**fields), steps=1, **HOW["digits"])


def confusable(seed: int):
    """300 digits with the classes that a network finds likely as candidates, each with 0.7 times its share of the likeliest."""
    run, rows = Run(seed), data("digits/train").take(range(300))
    judge = run.fit(preset("mlp", seed=200 + seed, width=32), rows, steps=60, **HOW["digits"])
    p = run.infer(judge, rows, lambda b, o: (o / 2).softmax(-1)).double().numpy()
    p[np.arange(300), rows["label"]] = 0
    sets = run.numpy("candidates").random(p.shape) < 0.7 * p / p.max(1, keepdims=True)
    sets[np.arange(300), rows["label"]] = True
    return rows.with_(candidates=sets.astype(np.int64)).without("label")


def measure(seed: int, arm: str) -> float:
    run = Run(seed)
    part = ProgressivePurification() if arm == "method" else ProgressivePurification(threshold=0.0)
    model = run.fit(preset("mlp", seed=seed, width=32), confusable(seed), part, steps=400, **HOW["digits"])
    return Accuracy()(run, model, data("digits/test")).value


CLAIM = Claim(
    method="progressive_purification",
    world="digits",
    rival="the same loss without purification (PRODEN)",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
