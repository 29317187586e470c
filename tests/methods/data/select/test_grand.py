from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.grand import GraNd
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def softmax_regression(n=7, inputs=4, classes=3):
    rng = torch.Generator().manual_seed(0)
    net = torch.nn.Linear(inputs, classes)
    features, label = torch.randn(n, inputs, generator=rng), torch.randint(classes, (n,), generator=rng)
    return Model(net), features, label, Data.of({"features": features.numpy(), "label": label.numpy()})


@pytest.mark.parametrize("chunk", [0, 1, 3, 7, 100])
def test_norms_are_the_closed_form_of_softmax_regression(chunk):
    model, features, label, data = softmax_regression()
    got = GraNd(proxies=(model,), keep=1.0, chunk=chunk)(Run(0), data)["grand"]
    for x, y, g in zip(features, label, got, strict=True):
        error = model.net(x).softmax(-1) - torch.eye(3)[y]
        # d loss / d W = error x^T, d loss / d b = error
        assert g.item() == pytest.approx((error.norm() * (1 + x.square().sum()).sqrt()).item(), rel=1e-5)


def test_frozen_weights_do_not_count():
    model, features, label, data = softmax_regression()
    model.net.weight.requires_grad_(False)
    error = model.net(features).softmax(-1) - torch.eye(3)[label]
    for chunk in (0, 1, 4):
        got = GraNd(proxies=(model,), keep=1.0, chunk=chunk)(Run(0), data)["grand"]
        assert np.allclose(got, error.norm(dim=1).detach(), rtol=1e-5)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vectorized_and_row_by_row_agree_on_a_real_network_and_a_language_model():
    for name, rows in (("digits", 9), ("text", 4)):
        nouns = world(name)
        few = nouns["data"].take(range(rows))
        scores = [GraNd(proxies=(nouns["model"],), keep=1.0, chunk=c)(Run(0), few)["grand"] for c in (1, 4, 0)]
        assert np.allclose(scores[0], scores[1], rtol=1e-3) and np.allclose(scores[1], scores[2], rtol=1e-3)
        assert nouns["model"].net.training == (name == "digits") and all(
            p.grad is None for p in nouns["model"].net.parameters()
        )


def test_every_pass_is_paid_for_once_and_later_ones_as_usual():
    nouns, bills = world("digits"), []
    for chunk in (1, 8):
        run = Run(0)
        run.step(GraNd(proxies=(nouns["model"],), chunk=chunk), nouns["data"].take(range(16)))
        run.infer(nouns["model"], nouns["data"].take(range(16)), lambda b, o: o)
        bills.append((run.meter.forward, run.meter.backward))
    row = bills[0][0] / 32  # two forwards of 16 rows, and one backward of twice the price
    assert bills[0] == (32 * row, 32 * row) and bills[1] == (
        33 * row,
        34 * row,
    )  # and a row by which the first is checked


def test_the_highest_are_kept_in_order():
    nouns = world("digits")
    out = GraNd(proxies=tuple(nouns["proxies"]), keep=0.1)(Run(0), nouns["data"])
    every = GraNd(proxies=tuple(nouns["proxies"]), keep=1.0)(Run(0), nouns["data"])["grand"]
    assert out.ids.tolist() == sorted(np.argsort(-every, kind="stable")[:40].tolist())


def test_bad_input_is_named():
    nouns = world("digits")
    one = (nouns["model"],)
    for fields, name in (({"keep": 0.0}, "keep=0"), ({"chunk": -1}, "chunk=-1"), ({"proxies": ()}, "proxies is empty")):
        with pytest.raises(ValueError, match=name):
            GraNd(**{"proxies": one, **fields})(nouns["data"])

    class Looks(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() > 0 else super().forward(-x)

    with pytest.raises(ValueError, match="chunk=1"):
        GraNd(proxies=(Model(Looks(64, 10)),), chunk=3)(nouns["data"].take(range(4)))
    looks = Model(Looks(64, 10))
    scores = [GraNd(proxies=(looks,), keep=1.0, chunk=c)(nouns["data"].take(range(4)))["grand"] for c in (0, 1)]
    assert np.allclose(*scores)
    with pytest.raises(ValueError, match="no rows"):
        GraNd(proxies=one)(Data.take(nouns["data"], []))


@cache
def noisy_and_proxies():
    rows = data("digits/noisy")
    how = {**HOW["digits"], "steps": 60}
    return rows, tuple(Run(s).fit(preset("mlp", seed=s, width=32), rows, **how) for s in range(100, 110))


def measure(seed: int, arm: str) -> float:
    """Share of wrong labels in a fifth of the rows."""
    rows, proxies = noisy_and_proxies()
    if arm == "method":
        top = GraNd(proxies=proxies[seed % 10 : seed % 10 + 1], keep=0.2)(Run(seed), rows)
    else:
        top = rows.take(Run(seed).numpy("rival").permutation(len(rows))[: len(rows) // 5])
    return float((top["label"] != top["truth"]).mean())


CLAIM = Claim(
    method="grand",
    world="digits",
    rival="as many random rows",
    quantity="share of wrong labels among the fifth that scores highest",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
