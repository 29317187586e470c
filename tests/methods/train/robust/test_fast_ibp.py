from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.train.robust.fast_ibp import FastIBP, imbalance, tightness
from trainlore.nouns import Model
from trainlore.primitives.intervals import bounds, margins
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


class Residual(nn.Module):
    """A small image network with everything the bounds know: convolution, batch norm, pooling, a sum, dropout."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm, self.conv = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding=1),
        )
        self.head = nn.Sequential(
            nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 10)
        )

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x.view(-1, 1, 8, 8))))
        out = self.conv(x)
        out += x
        return self.head(out)


@pytest.mark.parametrize("training", [False, True])
def test_no_point_of_the_box_leaves_the_bounds_and_margins_are_tighter(training):
    with Run(0).global_rng("net"):
        net = Residual().double().train(training)
        net.head[2].eval()
        model = Model(net)
        at = data("digits/test").batch(range(16))
        x, labels = at["features"].double(), at["labels"]
        before = {k: v.clone() for k, v in net.state_dict().items()}
        lower, upper, _ = bounds(model, x, x - 0.02, x + 0.02)
        worst, _ = margins(model, {"features": x, "labels": labels}, 0.02)
        assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())  # the statistics too
        for _ in range(50):
            near = x + 0.02 * (2 * torch.rand_like(x) - 1).sign()
            if training:  # the statistics are those of the clean rows
                _freeze(net, x)
            out = net.eval()(near)
            net.train(training), net.load_state_dict(before)
            assert ((out >= lower - 1e-9) & (out <= upper + 1e-9)).all()
            assert (out.gather(1, labels[:, None]) - out >= worst - 1e-9).all()
        crude = (lower.gather(1, labels[:, None]) - upper).masked_fill(F.one_hot(labels, 10).bool(), 0.0)
        assert (worst >= crude - 1e-12).all() and (worst > crude + 1e-6).any()
        same, _ = margins(model, {"features": x, "labels": labels}, 0.0)
        _freeze(net, x) if training else None
        out = net.eval()(x)
        assert torch.allclose(same, out.gather(1, labels[:, None]) - out, atol=1e-9)


def _freeze(net, x):
    """Running statistics that are the batch's own."""
    h = net.stem(x.view(-1, 1, 8, 8))
    (
        net.norm.running_mean.copy_(h.mean((0, 2, 3)).detach()),
        net.norm.running_var.copy_(h.var((0, 2, 3), unbiased=False).detach()),
    )


def test_the_regularizers_are_the_authors():
    rng = torch.Generator().manual_seed(0)
    relus = []
    for width in (0.3, 4.0):
        centre = torch.randn(6, 5, generator=rng) - 0.4
        relus.append((centre - width / 2, centre + width / 2))
    assert tightness(torch.tensor(0.1), relus, 0.5).item() == pytest.approx(
        ((0.5 - min(0.5, 0.1 / 0.15)) + (0.5 - 0.1 / 2)) / 2 / 0.5
    )
    total = 0.0
    for low, high in relus:
        c = [(a + b) / 2 for a, b in zip(low.reshape(-1).tolist(), high.reshape(-1).tolist(), strict=True)]
        act, dead = low.reshape(-1) > 0, high.reshape(-1) < 0
        if not act.any() or not dead.any():
            continue
        mean = sum(v for v, a in zip(c, act) if a) / -sum(v for v, d in zip(c, dead) if d)
        m = sum(c) / len(c)
        var = sum((v - m) ** 2 for v, a in zip(c, act) if a) / sum((v - m) ** 2 for v, d in zip(c, dead) if d)
        total += sum(max(0.0, 0.5 - min(r, 1 / r)) for r in (mean, var)) / 0.5
    assert imbalance(relus, 0.5).item() == pytest.approx(total / 2, rel=1e-5)


class Nothing(FastIBP):
    """Only the initial weights."""

    def loss(self, loop, s, batch, out, inner):
        return inner(batch, out) * 0


def test_the_initial_weights_keep_the_width_of_intervals():
    with Run(0).global_rng("net"):
        layers = [m for _ in range(6) for m in (nn.Linear(64, 64), nn.ReLU())]
        model = Model(nn.Sequential(*layers, nn.Linear(64, 10)))
    rows, before = data("digits/train").take(range(64)), model.net[-1].weight.clone()
    Run(0).fit(model, rows, Nothing(), steps=1, lr=0.0, precision="fp32")
    assert model.net[2].weight.std().item() == pytest.approx(math.sqrt(2 * math.pi) / 64, rel=0.05)
    assert torch.equal(model.net[-1].weight, before)
    x = rows.batch(range(64))["features"]
    _, _, tape = bounds(model, x, x - 1e-3, x + 1e-3)
    widths = [((high - low) / 2).mean().item() / 1e-3 for low, high in tape["relus"]]
    assert all(0.3 < w < 3 for w in widths)


def test_a_layer_after_a_sum_is_halved():
    with Run(0).global_rng("net"):
        model = Model(Residual())
    Run(0).fit(model, data("digits/train").take(range(64)), Nothing(), steps=1, lr=0.0, precision="fp32")
    sigma = math.sqrt(2 * math.pi)
    assert model.net.conv.weight.std().item() == pytest.approx(sigma / 36, rel=0.25)
    assert model.net.stem.weight.std().item() == pytest.approx(sigma / 9, rel=0.5)


def test_bad_fields_are_named():
    at = world("digits")
    for fields, name in (
        ({"eps": -0.1}, "eps=-0.1"),
        ({"natural": 0.6, "ramp": 0.5}, "natural=0.6"),
        ({"tau": 0.0}, "tau=0"),
    ):
        with pytest.raises(ValueError, match=name):
            Run(0).fit(at["model"], at["data"], FastIBP(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """Share of test rows that cannot be certified, for four layers with batch norm and a short ramp."""
    run, eps = Run(seed), 0.1
    with run.global_rng("net"):
        layers = [m for n in (64,) * 4 for m in (nn.Linear(64, n), nn.BatchNorm1d(n), nn.ReLU())]
        model = Model(nn.Sequential(*layers, nn.Linear(64, 10)))
    without = {} if arm == "method" else {"init": False, "regularize": 0.0}
    part = FastIBP(eps=eps, low=0.0, high=1.0, **without)
    run.fit(model, data("digits/train"), part, steps=200, batch_size=64, lr=5e-3, precision="fp32")
    batch = data("digits/test").batch(range(400))
    with torch.no_grad():
        worst, _ = margins(model, batch, eps, 0.0, 1.0)
    return 1 - (worst.masked_fill(F.one_hot(batch["labels"], 10).bool(), 1.0) > 0).all(1).float().mean().item()


CLAIM = Claim(
    method="fast_ibp",
    world="digits",
    rival="interval training from ordinary initial weights, without the regularizers",
    quantity="verified error at eps 0.1",
    better="lower",
    measure=measure,
    seeds=10,
    quick=2,
)
