from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.objective.label_smoothing import LabelSmoothing, uniform_loss
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_smoothed_target_is_the_papers_and_the_librarys():
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 7, generator=rng), torch.randint(7, (5,), generator=rng)
    got = 0.9 * F.cross_entropy(logits, labels, reduction="none") + 0.1 * uniform_loss(logits, labels)
    for z, y, loss in zip(logits.tolist(), labels.tolist(), got, strict=True):
        logs = [v - math.log(sum(math.exp(w) for w in z)) for v in z]
        target = [0.9 * (k == y) + 0.1 / 7 for k in range(7)]
        assert loss.item() == pytest.approx(-sum(t * v for t, v in zip(target, logs, strict=True)), rel=1e-5)
    assert torch.allclose(got, F.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1))


def test_ignored_tokens_stay_at_zero_and_shares_are_taken():
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[1, -100, 4], [-100, -100, 0]])
    assert ((uniform_loss(logits, labels) == 0) == (labels == -100)).all()
    shares = torch.full((2, 5), 0.2)
    assert torch.allclose(uniform_loss(logits[:, 0], shares), F.cross_entropy(logits[:, 0], shares, reduction="none"))


def test_the_part_gives_the_librarys_loss_on_a_language_model():
    at, run = world("text"), Run(0)
    batch = at["data"].batch(range(8), at["model"])
    out = at["model"](batch).detach()

    class Loop:
        model = at["model"]

    def plain(b, o):
        flat = F.cross_entropy(o[:, :-1].reshape(-1, o.shape[-1]), b["labels"][:, 1:].reshape(-1), reduction="none")
        return flat.reshape(b["labels"][:, 1:].shape)

    got = LabelSmoothing(amount=0.2).loss(Loop, {}, batch, out, plain)
    y = batch["labels"][:, 1:].reshape(-1)
    wanted = F.cross_entropy(out[:, :-1].reshape(-1, out.shape[-1]), y, reduction="none", label_smoothing=0.2)
    assert torch.allclose(got.reshape(-1), wanted, atol=1e-5)
    run.fit(at["model"], at["data"], LabelSmoothing(), steps=2, **HOW["text"])


def test_the_papers_amount_and_bad_ones():
    assert LabelSmoothing().amount == 0.1
    at = world("digits")
    for amount in (-0.1, 1.0):
        with pytest.raises(ValueError, match=f"amount={amount}"):
            Run(0).fit(at["model"], at["data"], LabelSmoothing(amount=amount), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    at, run = world("digits", seed), Run(seed)
    parts = [LabelSmoothing(amount=0.1)] if arm == "method" else []
    model = run.fit(at["model"], at["data"], *parts, steps=300, **HOW["digits"])
    return Accuracy()(run, model, at["test"]).value


CLAIM = Claim(
    method="label_smoothing",
    world="digits",
    rival="plain training",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
