from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.label.noise_aware import NoiseAware, confidence_of
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_the_confidence_is_the_mean_share_of_the_label():
    shares = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0))
    shares = shares / shares.sum(2, keepdim=True)
    given = np.array([0, 1, 2, 3, 0, 1])
    for labels in (None, given):
        label, sure = confidence_of(shares, labels)
        for i in range(6):
            mean = [sum(float(shares[m, i, k]) for m in range(3)) / 3 for k in range(4)]
            assert label[i] == (np.argmax(mean) if labels is None else given[i])
            assert sure[i] == pytest.approx(mean[label[i]], rel=1e-5)
    with pytest.raises(ValueError, match="run from 0 to 9"):
        confidence_of(shares, np.array([0, 1, 2, 3, 0, 9]))


class Watched(Run):
    """A run that remembers what was trained on."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), data]
        return super().fit(model, data, *parts, **how)


def test_weak_rows_count_by_their_confidence_and_those_by_hand_in_full():
    at, run = world("digits"), Watched(0)
    few, before = at["data"].take(range(30)), at["model"].fingerprint
    weak = at["noisy"].take(range(50))
    NoiseAware(weak=weak, labellers=(at["teacher"],), power=2.0, steps=2)(run, at["model"], few)
    (rows,) = run.fits
    sure = confidence_of(run.infer(at["teacher"], weak, lambda b, o: o.softmax(-1))[None], weak["label"])[1]
    assert np.allclose(rows["weight"], [1.0] * 30 + (sure**2).tolist(), rtol=1e-5)
    assert rows["label"][30:].tolist() == weak["label"].tolist() and at["model"].fingerprint == before


def test_without_labels_or_labellers_the_model_itself_says():
    at, run = world("digits"), Watched(0)
    few = at["data"].take(range(60)).with_(weight=np.full(60, 0.5))
    model = NoiseAware(weak=at["spare"], steps=40, lr=1e-2)(run, at["model"], few)
    first, both = run.fits
    assert len(first) == 60 and len(both) == 60 + len(at["spare"]) and both["weight"][0] == 0.5
    assert 0.1 < model.about["noise_aware"]["mean_confidence"] < 1 and both["weight"].max() <= 1


def test_a_column_of_confidence_and_power_0():
    at, run = world("digits"), Watched(0)
    weak = at["noisy"].take(range(20)).with_(sure=np.linspace(0, 1, 20))
    NoiseAware(weak=weak, confidence="sure", steps=1)(run, at["model"], at["data"])
    NoiseAware(weak=weak, confidence="sure", power=0.0, steps=1)(run, at["model"], at["data"])
    assert np.allclose(run.fits[0]["weight"][400:], np.linspace(0, 1, 20)) and (run.fits[1]["weight"] == 1).all()


def test_bad_input_is_named():
    at = world("digits")
    for fields, words in (
        ({"power": -1.0}, "power=-1"),
        ({"weak": at["spare"], "confidence": "truth"}, "does not have"),
        ({"confidence": "label"}, "from 0 to 1"),
        ({"weak": at["spare"].with_(label=["x"] * 397)}, "`weak` must hold class numbers"),
        ({"weak": at["noisy"].take([])}, r"`weak`.*no rows"),
    ):
        with pytest.raises(ValueError, match=words):
            NoiseAware(**{"weak": at["noisy"], **fields})(at["model"], at["data"])
    features = at["noisy"]["features"].copy()
    features[:3, 5] = np.nan
    with pytest.raises(ValueError, match="labellers' shares are not finite for 3 rows of `weak`"):
        NoiseAware(weak=at["noisy"].with_(features=features), labellers=(at["teacher"],))(at["model"], at["data"])
    with pytest.raises(ValueError, match="'label'"):
        NoiseAware(weak=at["noisy"])(at["model"], at["spare"])


def measure(seed: int, arm: str) -> float:
    """30 rows by hand, 600 labelled by four networks that had 40 rows each."""
    run, spare = Run(seed), data("digits/spare")
    known = spare.with_(label=spare["truth"])
    few = [known.take(run.numpy("rows", i).permutation(len(known))[:40]) for i in range(5)]
    labellers = tuple(
        run.fit(preset("mlp", seed=1000 * seed + i, width=16), few[i], steps=60, **HOW["digits"]) for i in range(4)
    )
    power = 1.0 if arm == "method" else 0.0
    weak = data("digits/noisy").without("label").take(range(600))
    method = NoiseAware(weak=weak, labellers=labellers, power=power, steps=150, lr=1e-2)
    model = method(run, preset("mlp", seed=seed, width=32), few[4].take(range(30)))
    return Accuracy()(run, model, data("digits/test")).value


CLAIM = Claim(
    method="noise_aware",
    world="digits",
    rival="every weak row in full",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
