from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.objective.ema import EMA, decay_at, mixed
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


@pytest.mark.parametrize("warmup", [0.0, 2 / 3, 1.0])
def test_the_running_form_against_the_sum_it_stands_for(warmup):
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, total = torch.zeros((), dtype=torch.float64), 0.0
    d = [decay_at(t, 0.9, warmup) for t in range(1, 13)]
    for t in range(12):
        total, share = mixed(total, d[t])
        mean = mean + share * (x[t] - mean)
        weight = torch.tensor(
            [(1 - d[i]) * torch.tensor(d[i + 1 : t + 1], dtype=torch.float64).prod() for i in range(t + 1)]
        )
        torch.testing.assert_close(mean, (weight * x[: t + 1]).sum() / weight.sum())


def test_a_warmup_of_power_one_is_the_plain_mean_and_none_is_adams_correction():
    total, shares = 0.0, []
    for t in range(1, 6):
        total, share = mixed(total, decay_at(t, 1 - 1e-12, 1.0))
        shares.append(share)
    assert shares == pytest.approx([1 / t for t in range(1, 6)])
    assert mixed(1 - 0.9**4, 0.9)[1] == pytest.approx(0.1 / (1 - 0.9**5))


def fitted(seed: int, *parts: EMA, steps: int = 40):
    at = world("digits", seed)
    return Run(seed).fit(at["model"], at["data"], *parts, steps=steps, **HOW["digits"]).net.state_dict()


def test_the_weights_handed_on_are_the_average_of_those_trained():
    averaged, lasts = fitted(0, EMA(decay=0.5), steps=6), [fitted(0, steps=n) for n in range(1, 7)]
    weight = torch.tensor([0.5 ** (6 - n) for n in range(1, 7)])
    for name, value in averaged.items():
        mine = sum(w * last[name] for w, last in zip(weight / weight.sum(), lasts, strict=True))
        torch.testing.assert_close(value, mine)


def test_without_debiasing_the_first_weights_count():
    start = world("digits", 0)["model"].net.state_dict()
    name = next(iter(start))
    torch.testing.assert_close(
        fitted(0, EMA(decay=0.9, debias=False), steps=1)[name], 0.9 * start[name] + 0.1 * fitted(0, steps=1)[name]
    )


def test_tied_weights_are_averaged_once_and_stay_tied():
    at = world("text")
    model = Run(0).fit(at["model"], at["data"], EMA(decay=0.9), steps=3, **HOW["text"])
    assert model.net.lm_head.weight is model.net.model.embed_tokens.weight


def test_bad_fields_are_named():
    for fields in ({"decay": 1.0}, {"warmup": -1.0}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            EMA(**fields).start(None)


def measure(seed: int, arm: str) -> float:
    at, run = world("digits", seed), Run(seed)
    parts = [EMA(decay=0.95)] if arm == "method" else []
    model = run.fit(at["model"], at["noisy"].without("truth"), *parts, steps=150, **HOW["digits"])
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="ema",
    world="digits",
    rival="the last weights",
    quantity="test accuracy after training on noisy labels",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
