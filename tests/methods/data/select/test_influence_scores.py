from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select import influence_scores
from trainlore.methods.data.select.influence_scores import InfluenceScores, input_slopes, spread, surprise, within_class
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_the_spread_is_the_mean_standard_deviation_over_checkpoints():
    rng = np.random.default_rng(0)
    slopes, counted = rng.normal(size=(4, 5, 6)), rng.random((5, 6)) < 0.7
    got = spread(torch.tensor(slopes), torch.tensor(counted))
    for i in range(5):
        by_hand = [np.std([slopes[k, i, d] for k in range(4)]) for d in range(6) if counted[i, d]]
        assert got[i].item() == pytest.approx(np.mean(by_hand))


def test_standardizing_and_pvi_by_hand():
    score, label = np.array([1.0, 3.0, 10.0, 20.0, 5.0]), np.array([0, 0, 7, 7, 2])
    assert within_class(score, label).tolist() == [-1.0, 1.0, -1.0, 1.0, 0.0]
    logprob = np.log([0.4, 0.1, 0.8, 0.2, 0.2])
    assert np.exp(surprise(logprob, label)).tolist() == pytest.approx([1.0, 4.0, 0.5, 2.0, 1.0])


def test_input_slopes_are_the_rows_of_a_linear_layer_and_those_of_embeddings():
    at = world("digits")
    linear, batch = Model(torch.nn.Linear(64, 10)), at["data"].batch(range(5))
    assert torch.allclose(input_slopes(linear, batch), linear.net.weight[batch["labels"]])
    from transformers import BertConfig, BertForSequenceClassification

    small = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "num_labels": 3,
    }
    bert = Model(BertForSequenceClassification(BertConfig(vocab_size=20, **small)).eval(), "classifier")
    rows = Data.of({"input_ids": [[3, 4, 5], [6, 7, 8, 9, 10]], "label": [0, 2]})
    slopes = input_slopes(bert, batch := rows.batch(range(2)))
    table = bert.net.get_input_embeddings().weight
    by_token = torch.autograd.grad(bert(batch)[1, 2], table)[0].mean(1)
    assert torch.allclose(slopes[1, :5], by_token[[6, 7, 8, 9, 10]], atol=1e-6)
    scored = InfluenceScores(model=bert, keep=1.0, checkpoints=2, by_class=False, batch_size=1)(Run(0), rows)
    assert (scored["vog"] > 0).all()


def test_forgetting_counts_right_answers_that_were_lost(monkeypatch):
    at, answers = world("digits"), {0: [1, 0, 1, 0], 1: [0, 0, 0, 0], 2: [1, 1, 1, 1], 3: [0, 1, 1, 0]}
    rows = at["data"].take(range(4))

    class Told(Run):
        def fit(self, model, data, part, **how):
            loop = type("Loop", (), {"data": data})
            part.start(loop)
            for k in range(4):
                batch = data.batch(range(4))
                out = torch.nn.functional.one_hot(batch["labels"], 10).float()
                out *= torch.tensor([1.0 if answers[i][k] else -1.0 for i in range(4)])[:, None]
                part.loss(loop, {}, batch, out, lambda b, o: o)
            return model

    out = InfluenceScores(model=at["model"], score="forgetting", keep=1.0, epochs=4.0, by_class=False)(Told(0), rows)
    assert out["forgetting"].tolist() == [2.0, 5.0, 0.0, 1.0]


@pytest.mark.parametrize("score", ["vog", "forgetting", "pvi", "tracin"])
def test_each_score_keeps_the_highest_and_leaves_the_model_alone(score):
    at = world("digits")
    before, how = at["model"].fingerprint, {"model": at["model"], "score": score, "epochs": 2.0, "lr": 0.01}
    every = InfluenceScores(**how, keep=1.0)(Run(0), at["data"])[score]
    assert len(np.unique(every)) > 2
    out = InfluenceScores(**how, keep=0.1, skip_top=0.2)(Run(0), at["data"])
    assert out.ids.tolist() == sorted(np.argsort(-every, kind="stable")[80:120].tolist())
    assert at["model"].fingerprint == before


def test_tracin_is_the_sum_over_checkpoints_of_squared_lengths(monkeypatch):
    at = world("digits")
    lengths = iter(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    monkeypatch.setattr(influence_scores, "row_norms", lambda *_: next(lengths))
    how = {
        "score": "tracin",
        "checkpoints": 2,
        "epochs": 2.0,
        "lr": 0.5,
        "by_class": False,
        "keep": 1.0,
        "batch_size": 3,
    }
    out = InfluenceScores(model=at["model"], **how)(Run(0), at["data"].take(range(3)))
    assert out["tracin"].tolist() == [0.5 * 17, 0.5 * 29, 0.5 * 45]


def test_bad_input_is_named():
    at, text = world("digits"), Model(torch.nn.Linear(64, 1), "regressor")
    for fields, name in (
        ({"keep": 0.0, "epochs": 1.0}, "keep=0"),
        ({"skip_top": 1.0}, "skip_top=1"),
        ({"checkpoints": 1}, "checkpoints=1"),
        ({"checkpoints": 0, "score": "pvi"}, "checkpoints=0"),
        ({"model": text}, "classifier"),
        ({"checkpoints": 50, "epochs": 1.0}, "checkpoints=50"),
    ):
        with pytest.raises(ValueError, match=name):
            InfluenceScores(**{"model": at["model"], **fields})(at["data"])
    with pytest.raises(ValueError, match="'label'"):
        InfluenceScores(model=at["model"])(at["spare"])


def measure(seed: int, arm: str) -> float:
    """Accuracy after training on half of the rows."""
    rows, run = data("digits/train"), Run(seed)
    if arm == "method":
        half = InfluenceScores(model=preset("mlp", seed=seed, width=32), epochs=8.0, lr=0.01)(run, rows)
    else:
        half = rows.take(run.numpy("rival").permutation(len(rows))[: len(rows) // 2])
    model = run.fit(preset("mlp", seed=1000 + seed, width=32), half, steps=200, **HOW["digits"])
    return float(run.infer(model, data("digits/test"), lambda b, o: (o.argmax(1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="influence_scores",
    world="digits",
    rival="a random half",
    quantity="accuracy after training on the half with the highest variance of gradients",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
