from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select import influence_scores
from trainlore.methods.data.select.influence_scores import InfluenceScores
from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_forgetting_counts_right_answers_that_were_lost(monkeypatch):
    at, answers = world("digits"), {0: [1, 0, 1, 0], 1: [0, 0, 0, 0], 2: [1, 1, 1, 1], 3: [0, 1, 1, 0]}
    rows = at["data"].take(range(4))

    class Told(Run):
        def fit(self, model, data, part, **how):
            loop = type("Loop", (), {"data": data})
            s = part.start(loop)
            for k in range(4):
                batch = data.batch(range(4))
                out = torch.nn.functional.one_hot(batch["labels"], 10).float()
                out *= torch.tensor([1.0 if answers[i][k] else -1.0 for i in range(4)])[:, None]
                part.loss(loop, s, batch, out, lambda b, o: o)
                part.watch(loop, s, {})
            return model

    out = InfluenceScores(model=at["model"], score="forgetting", keep=1.0, epochs=4.0, by_class=False)(Told(0), rows)
    assert out["forgetting"].tolist() == [2.0, 5.0, 0.0, 1.0]


def test_what_it_remembers_survives_a_stop(tmp_path):
    found = []
    for stops in ((None,), (7, None)):  # in one go, and stopped and gone on with
        for until in stops:
            at, seen = world("digits"), {}
            part, how = influence_scores._Remember(looks=3, seen=seen), {"epochs": 2.0, "batch_size": 32, "lr": 0.01}
            Run(0).fit(at["model"], at["data"], part, until=until, folder=tmp_path if len(stops) > 1 else None, **how)
        found.append(seen)
    for name in ("right", "ever", "lost"):
        assert torch.equal(found[0][name], found[1][name]) and found[0][name].any()
    for one, two in zip(found[0]["weights"], found[1]["weights"], strict=True):
        assert all(torch.equal(one[k], two[k]) for k in one)
    assert len(found[1]["weights"]) == 3


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
        ({"score": "loss"}, "score='loss'"),
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
