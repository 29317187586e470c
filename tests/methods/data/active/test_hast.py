from __future__ import annotations

from math import exp

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.active.hast import HAST, _Weights, class_weights, verified
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world


def test_a_row_stays_where_it_and_its_neighbours_are_of_one_mind():
    rng = torch.Generator().manual_seed(0)
    shares = torch.rand(60, 3, generator=rng).pow(2)
    shares, points = shares / shares.sum(1, keepdim=True), torch.randn(60, 2, generator=rng)
    rows, label = verified(shares, points, 5, 0.45, 0.5)
    unit, wanted = points / points.norm(dim=1, keepdim=True), []
    for i in range(60):
        near = sorted((j for j in range(60) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:5]
        votes = [int((shares[near].argmax(1) == c).sum()) for c in range(3)]
        mine = int(shares[i].argmax())
        if shares[i, mine] > 0.45 and votes.index(max(votes)) == mine and max(votes) / 5 > 0.5:
            wanted.append(i)
    assert 5 < len(wanted) < 40 and rows.tolist() == wanted and label.tolist() == shares[wanted].argmax(1).tolist()


def test_rare_classes_weigh_more():
    got = class_weights(np.array([0] * 6 + [1] * 3), 3)  # the mean class has 3
    assert got[0] == pytest.approx(10 / (1 + exp(0.5))) and got[-1] == pytest.approx(5.0)


class Watched(Run):
    """A run that remembers what was trained on, from which weights, with which parts."""

    def fit(self, model, rows, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, rows, parts)]
        return super().fit(model, rows, *parts, **how)


def test_it_trains_twice_from_the_given_weights_and_made_labels_weigh_less():
    at, run = world("digits"), Watched(0)
    few, start = at["data"].take(range(100)), at["model"].fingerprint
    model = HAST(unlabelled=at["spare"], steps=100, lr=1e-2, judged=300)(run, at["model"], few)
    (first, _, none), (second, rows, parts) = run.fits
    assert first == second == start and not none and len(rows) == 100 + model.about["hast"]["rows"] > 250
    made = rows["label"][100:]
    wanted = np.concatenate([np.ones(100), 0.1 * class_weights(made, 10)])
    assert np.allclose(parts[0].values, wanted)
    judged = at["spare"].take(np.sort(Run(0).numpy("hast").permutation(397)[:300]))
    taught = Run(0).fit(at["model"].copy(), few, steps=100, batch_size=32, lr=1e-2)
    shares = Run(0).infer(taught, judged, lambda b, o: o.double().softmax(-1))
    taken, label = verified(shares, Run(0).embed(taught, judged), 15, 0.5, 0.5)
    assert np.array_equal(rows["features"][100:], judged["features"][taken]) and made.tolist() == label.tolist()


def test_weights_multiply_the_losses():
    at = world("digits")
    rows = at["data"].take([3, 9])
    plain = Run(0).fit(at["model"].copy(), rows.take([0]), steps=20, batch_size=1, lr=1e-2)
    one = Run(0).fit(
        at["model"].copy(), rows, _Weights(values=torch.tensor([1.0, 0.0])), steps=20, batch_size=2, lr=1e-2
    )
    # the other row counts nothing: twice the loss over twice the rows
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(plain.net.parameters(), one.net.parameters(), strict=True)
    )


def test_nobody_to_judge_and_nobody_sure():
    at, run = world("digits"), Watched(0)
    HAST(steps=2)(run, at["model"], at["data"])
    HAST(unlabelled=at["spare"], steps=2, sure=1.0)(run, at["model"], at["data"])
    assert len(run.fits) == 2


def test_bad_input_is_named():
    at = world("digits")
    for fields, says in (({"weight": 0.0}, "weight=0.0"), ({"k": 0}, "k=0"), ({"judged": 0}, "judged=0")):
        with pytest.raises(ValueError, match=says):
            HAST(unlabelled=at["spare"], **fields)(at["model"], at["data"])
    with pytest.raises(ValueError, match="'label'"):
        HAST(unlabelled=at["spare"])(at["model"], at["spare"])
    features = at["spare"]["features"].copy()
    features[3, 5] = np.nan  # such a row would be a neighbour of all
    with pytest.raises(ValueError, match=f"shares are not finite for 1 of {len(features)} rows"):
        HAST(unlabelled=at["spare"].with_(features=features), steps=2)(at["model"], at["data"])


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), data("digits/train")
    order = run.numpy("claim").permutation(len(rows))
    with run.global_rng("net"):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    others = rows.take(order[40:]).without("label") if arm == "method" else None
    method = HAST(unlabelled=others, steps=200, lr=3e-3)
    return Accuracy()(run, method(run, Model(net), rows.take(order[:40])), data("digits/test")).value


CLAIM = Claim(
    method="hast",
    world="digits",
    rival="training on the labelled rows alone",
    quantity="test accuracy with 40 labels and 960 rows without",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
