from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.robust.sam import SAM, ascent
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_the_step_up_has_its_length_and_direction():
    grads = [torch.tensor([3.0, 0.0], dtype=torch.float64), torch.tensor([[4.0]], dtype=torch.float64)]
    up = ascent(grads, 0.5)
    assert torch.allclose(up[0], torch.tensor([0.3, 0.0]).double()) and torch.allclose(
        up[1], torch.tensor([[0.4]]).double()
    )
    assert all(not e.any() for e in ascent([torch.zeros(3)], 0.5))


class Seen:
    """Just enough of a loop around loss(w) = w^4, one weight."""

    def __init__(self, w):
        self.net = nn.Linear(1, 1, bias=False).double()
        with torch.no_grad():
            self.net.weight.fill_(w)
        self.model, self.device, self.at = self, torch.device("cpu"), []

    def inner(self):
        self.net.zero_grad()
        self.at.append(self.net.weight.item())
        (self.net.weight**4).sum().backward()


def test_the_gradient_is_that_of_the_worst_point_and_the_weights_come_back():
    loop = Seen(1.0)
    SAM(rho=0.1).gradient(loop, {}, loop.inner)
    assert loop.at == pytest.approx([1.0, 1.1]) and loop.net.weight.item() == 1.0
    assert loop.net.weight.grad.item() == pytest.approx(4 * 1.1**3)
    loop = Seen(-1.0)
    SAM(rho=0.1).gradient(loop, {}, loop.inner)
    assert loop.at == pytest.approx([-1.0, -1.1])


def test_both_passes_draw_the_same_dropout():
    drawn = []

    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(64, 10)

        def forward(self, x):
            keep = torch.rand(64)
            drawn.append(keep)
            return self.head(x * keep)

    Run(0).fit(Model(Noisy()), world("digits")["data"], SAM(rho=0.1), steps=2, **HOW["digits"])
    assert len(drawn) == 4 and torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_flat_batch_and_a_bad_radius():
    flat = Data.of({"features": torch.zeros(4, 64).numpy(), "label": torch.zeros(4, dtype=torch.long).numpy()})
    net = nn.Sequential(nn.Linear(64, 10), nn.Hardtanh(-1e-9, 1e-9))
    assert SAM().rho == 0.05
    model = Run(0).fit(Model(net), flat, SAM(rho=0.1), steps=1, batch_size=4, precision="fp32")
    assert all(p.isfinite().all() for p in model.net.parameters())
    with pytest.raises(ValueError, match="rho=-1"):
        SAM(rho=-1.0).start(None)


def measure(seed: int, arm: str) -> float:
    at, run = world("digits", seed), Run(seed)
    parts = [SAM(rho=0.1)] if arm == "method" else []
    model = run.fit(at["model"], data("digits/noisy").take(range(400)), *parts, steps=400, **HOW["digits"])
    return Accuracy()(run, model, at["test"]).value


CLAIM = Claim(
    method="sam",
    world="digits",
    rival="plain training for as many steps",
    quantity="test accuracy after training on a fifth of wrong labels",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
