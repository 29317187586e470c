from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.semi.uda import UDA, consistency, signal
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_the_unlabelled_term_is_the_textbooks():
    rng = torch.Generator().manual_seed(0)
    plain, noised = (2 * torch.randn(40, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    got = consistency(plain, noised, sure=0.6, temperature=0.4)
    used = 0
    for z, w, k in zip(plain.tolist(), noised.tolist(), got.tolist(), strict=True):
        p, t, q = (_softmax([v / c for v in x]) for x, c in ((z, 1), (z, 0.4), (w, 1)))
        mask = max(p) > 0.6  # of the plain belief, not the sharpened one
        used += mask
        assert k == pytest.approx(mask * sum(a * math.log(a / b) for a, b in zip(t, q, strict=True)), abs=1e-5)
    assert 5 < used < 35


def _softmax(z):
    e = [math.exp(v) for v in z]
    return [v / sum(e) for v in e]


def test_the_signal_runs_from_chance_to_one():
    for schedule in ("linear", "log", "exp"):
        reached = {"linear": 0.5, "log": 1 - math.exp(-2.5), "exp": math.exp(-2.5)}[schedule]
        assert signal(schedule, 0.5, 10) == pytest.approx(0.1 + 0.9 * reached)
        assert signal(schedule, 1.0, 10) == pytest.approx(1, abs=0.01) and signal(schedule, 0.0, 10) == pytest.approx(
            0.1, abs=0.01
        )
    assert signal("none", 0.3, 10) == 1


class Loop:
    """Just enough of a loop."""

    model, t, done = Model(nn.Linear(2, 3)), 0, 0.5

    @staticmethod
    def rng(*key):
        return Run(0).rng(*key)


def test_no_gradient_reaches_the_target_and_labelled_rows_above_the_signal_are_left_out():
    spare = Data.of({"features": np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)})
    part = UDA(unlabelled=spare, sure=0.0, ratio=2, annealing="linear")
    batch = {"row": torch.arange(4), "features": torch.randn(4, 2), "labels": torch.tensor([0, 1, 2, 0])}
    batch = part.batch(Loop, {}, batch)
    assert batch["uda_plain_features"].shape == (4, 2, 2)
    assert (batch["uda_noised_features"] - batch["uda_plain_features"]).std().item() == pytest.approx(0.3, rel=0.5)
    out = torch.tensor([[9.0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]])
    got = part.loss(Loop, {}, batch, out, lambda b, o: torch.ones(4))
    views = [Loop.model({"features": batch[f"uda_{v}_features"].flatten(0, 1)}) for v in ("plain", "noised")]
    term = consistency(*views, 0.0, 0.4).view(4, 2).mean(1)
    kept = torch.tensor([0.0, 1, 1, 1]) * 4 / 3  # the first row's 0.9998 is above 1/3 + 2/3 * 0.5
    assert torch.allclose(got, kept + term, atol=1e-6)
    mine, hers = (
        torch.autograd.grad(f().sum(), Loop.model.net.weight)[0]
        for f in (
            lambda: part.loss(Loop, {}, batch, out, lambda b, o: torch.ones(4)),
            lambda: (
                consistency(
                    views[0].detach(), Loop.model({"features": batch["uda_noised_features"].flatten(0, 1)}), 0.0, 0.4
                )
                .view(4, 2)
                .mean(1)
            ),
        )
    )
    assert torch.allclose(mine, hers, atol=1e-6)


@pytest.mark.parametrize("noise", ["replace", "drop", "tfidf"])
def test_text_classifiers_take_token_noise(noise):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    at = world("text")
    tokenizer = at["model"].tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    with Run(0).global_rng("weights"):
        model = Model(LlamaForSequenceClassification(config), "classifier", tokenizer)
    texts = at["held_out"]
    rows = Data.of(
        {
            "text": list(texts.text("text")),
            "label": np.array([d == "b" for d in texts["domain"].to_pylist()]).astype(np.int64),
        }
    )
    run = Run(0)
    run.fit(
        model,
        rows.take(range(20)),
        UDA(unlabelled=rows.without("label"), sure=0.0, noise=noise, ratio=2),
        steps=3,
        batch_size=4,
        precision="fp32",
    )
    assert not run.effects[-1]["dead"]


def test_the_authors_numbers_and_bad_fields():
    at = world("digits")
    part = UDA(unlabelled=at["spare"])
    assert (part.weight, part.sure, part.temperature) == (1.0, 0.8, 0.4)
    for fields in ({"noise": "replace"}, {"noise": "blur"}, {"annealing": "cubic"}, {"temperature": 0.0}, {"ratio": 0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Run(0).fit(at["model"], at["data"], UDA(unlabelled=at["spare"], **fields), steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match=r"unlabelled.*no rows"):
        Run(0).fit(at["model"], at["data"], UDA(unlabelled=at["spare"].take([])), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    at, run = world("digits", seed), Run(seed)
    parts = [UDA(unlabelled=at["spare"])] if arm == "method" else []
    model = run.fit(at["model"], data("digits/train").take(range(50)), *parts, steps=200, **HOW["digits"])
    return Accuracy()(run, model, at["test"]).value


CLAIM = Claim(
    method="uda",
    world="digits",
    rival="training on the labelled rows alone",
    quantity="test accuracy with 50 labels",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
