from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.held_out_loss import HeldOutLoss
from trainlore.methods.train.continual.replay import Replay
from trainlore.methods.train.objective.feasible_learning import FeasibleLearning, ascend
from trainlore.methods.train.robust.sam import SAM
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


@pytest.mark.parametrize("relax", [0.0, 0.5])
def test_the_dual_step_is_projected_ascent(relax):
    rng = np.random.default_rng(0)
    dual, losses = rng.random(20), rng.random(20) * 3
    got = ascend(torch.tensor(dual), torch.tensor(losses), 0.9, 0.3, relax)
    for d, loss, g in zip(dual, losses, got, strict=True):
        slack = relax * d  # the slack that maximizes at this dual: dual / alpha
        assert g.item() == pytest.approx(max(0.0, d + 0.3 * (loss - 0.9 - slack)))


def test_with_slack_a_row_that_cannot_be_learned_stops_pulling_harder():
    dual = torch.zeros(1)
    for _ in range(2000):
        dual = ascend(dual, torch.tensor([2.0]), 0.5, 0.05, relax=0.5)
    assert dual.item() == pytest.approx((2.0 - 0.5) / 0.5, rel=1e-4)  # slack = relax * dual = loss - bound


class Kept(FeasibleLearning):
    """Feasible learning that shows its state."""

    seen = {}

    def loss(self, loop, s, batch, out, inner):
        value = super().loss(loop, s, batch, out, inner)
        self.seen.update(dual=s["dual"], last=s["last"])
        return value


def test_each_row_keeps_its_dual_and_takes_one_step_a_visit_even_around_sam():
    plain = torch.nn.functional.cross_entropy
    for parts in ([], [SAM(rho=0.5)]):
        at = world("digits")
        rows = at["data"].take(range(64))
        losses = plain(at["model"].net(torch.tensor(rows["features"])), torch.tensor(rows["label"]), reduction="none")
        Run(0).fit(
            at["model"],
            rows,
            Kept(bound=0.5, dual_lr=0.1),
            *parts,
            epochs=1,
            batch_size=64,
            micro_batch=16,
            precision="fp32",
        )
        assert Kept.seen["last"].tolist() == [0] * 64
        assert torch.allclose(Kept.seen["dual"], 0.1 * (losses.detach() - 0.5), atol=1e-5)


def test_rows_of_elsewhere_count_like_the_mean_row():
    at = world("digits")
    part = Kept(bound=0.5, dual_lr=0.1)
    Run(0).fit(at["model"], at["data"], part, Replay(memory=at["data"].take(range(9))), steps=4, **HOW["digits"])
    assert Kept.seen["dual"].isfinite().all() and (Kept.seen["last"] >= 0).sum() == 64


def test_the_authors_bound_and_bad_fields():
    assert FeasibleLearning().bound == pytest.approx(math.log(1 / 0.6), abs=1e-4)
    at = world("digits")
    for fields, name in (
        ({"bound": -1.0}, "bound=-1"),
        ({"relax": -0.1}, "relax=-0.1"),
        ({"dual_lr": 0.0}, "dual_lr=0"),
    ):
        with pytest.raises(ValueError, match=name):
            Run(0).fit(at["model"], at["data"], FeasibleLearning(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """Mean loss of the worst twentieth of the test rows."""
    at, run = world("digits", seed), Run(seed)
    parts = [FeasibleLearning(relax=1.0)] if arm == "method" else []
    model = run.fit(at["model"], at["data"], *parts, steps=400, **HOW["digits"])
    losses = HeldOutLoss()(run, model, at["test"])["loss"].values
    return float(np.sort(losses)[-len(losses) // 20 :].mean())


CLAIM = Claim(
    method="feasible_learning",
    world="digits",
    rival="training on the mean loss",
    quantity="mean loss of the worst twentieth of the test rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
