from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.semi.self_training import SelfTraining, confident
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world


@pytest.mark.parametrize("most", [None, 1, 3])
def test_the_sure_rows_are_taken_and_of_each_class_the_surest(most):
    shares = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)).pow(3)
    shares = shares / shares.sum(1, keepdim=True)
    position, label = confident(shares, 0.6, most)
    wanted = []
    for k in range(4):
        mine = [i for i in range(200) if shares[i].argmax() == k and shares[i, k] > 0.6]
        wanted += sorted(mine, key=lambda i: -shares[i, k].item())[:most]
    assert position.tolist() == sorted(wanted) and label.tolist() == shares[sorted(wanted)].argmax(1).tolist()


class Watched(Run):
    """A run that remembers what was trained on, and from which weights."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, data)]
        return super().fit(model, data, *parts, **how)


def test_every_round_starts_from_the_given_weights_with_the_sure_rows_added():
    at, run = world("digits"), Watched(0)
    few, start = at["data"].take(range(60)), at["model"].fingerprint
    method = SelfTraining(unlabelled=at["spare"], sure=0.8, rounds=2, weight=0.5, steps=60, lr=1e-2)
    model = method(run, at["model"], few)
    assert [f for f, _ in run.fits] == [start] * 3 and at["model"].fingerprint == start
    first = run.fits[1][1]
    teacher = Run(0).fit(at["model"].copy(), few, steps=60, batch_size=32, lr=1e-2)
    position, label = confident(Run(0).infer(teacher, at["spare"], lambda b, o: o.softmax(-1)), 0.8)
    assert first["label"].tolist() == few["label"].tolist() + label.tolist()
    assert first["weight"].tolist() == [1.0] * 60 + [0.5] * len(position)
    assert np.array_equal(first["features"][60:], at["spare"]["features"][position])
    assert model.about["self_training"][0]["rows"] == len(position)


def test_it_stops_when_nobody_is_sure():
    at, run = world("digits"), Watched(0)
    SelfTraining(unlabelled=at["spare"], sure=1.0, steps=2)(run, at["model"], at["data"])
    assert len(run.fits) == 1


def test_bad_input_is_named():
    at = world("digits")
    for fields, name in (({"weight": 0.0}, "weight"), ({"per_class": 0}, "per_class"), ({"rounds": -1}, "rounds")):
        with pytest.raises(ValueError, match=name):
            SelfTraining(unlabelled=at["spare"], **fields)(at["model"], at["data"])
    with pytest.raises(ValueError, match="'label'"):
        SelfTraining(unlabelled=at["spare"])(at["model"], at["spare"])
    with pytest.raises(ValueError, match=r"unlabelled.*no rows"):
        SelfTraining(unlabelled=at["spare"].take([]))(at["model"], at["data"])


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), data("digits/train").take(range(30))
    with run.global_rng("net"):
        model = Model(torch.nn.Sequential(torch.nn.Linear(64, 10)))
    rounds = 3 if arm == "method" else 0
    method = SelfTraining(unlabelled=data("digits/spare"), sure=0.8, rounds=rounds, steps=300, lr=1e-2)
    return Accuracy()(run, method(run, model, rows), data("digits/test")).value


CLAIM = Claim(
    method="self_training",
    world="digits",
    rival="training on the labelled rows alone",
    quantity="test accuracy of a linear classifier with 30 labels",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
