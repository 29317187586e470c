from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.start.merging.btm_average import BTMAverage, average, domain_posterior
from trainlore.primitives import losses
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_posterior_against_a_loop():
    rows = [[-rand(t, seed=10 * j + t).abs() for t in (3, 5, 1)] for j in range(3)]
    weights = [1 / 3] * 3
    for i in range(3):
        mean = [0.0] * 3
        steps = len(rows[0][i])
        for t in range(steps):  # what each expert made of the tokens before this one
            p = [weights[j] * math.exp(sum(float(rows[j][i][s]) for s in range(t))) for j in range(3)]
            mean = [m + x / sum(p) / steps for m, x in zip(mean, p, strict=True)]
        weights = mean if i == 0 else [0.7 * w + 0.3 * m for w, m in zip(weights, mean, strict=True)]
    torch.testing.assert_close(domain_posterior(rows), torch.tensor(weights, dtype=torch.float64))
    assert domain_posterior([[], []]).tolist() == [0.5, 0.5]


def test_the_average_against_a_loop_and_of_half_precision():
    states = [{"w": rand(2, 3, seed=j), "n": torch.tensor(7 + j)} for j in range(3)]
    mean = average(states, [0.2, 0.5, 0.3])
    expected = sum(s["w"] * w for s, w in zip(states, [0.2, 0.5, 0.3], strict=True))
    torch.testing.assert_close(mean["w"], expected)
    assert mean["n"] == 7
    halves = [{"w": torch.full((2,), 1.0 + j / 128, dtype=torch.bfloat16)} for j in range(3)]
    assert torch.equal(average(halves, [1 / 3] * 3)["w"], halves[1]["w"])  # summed in float32, rounded once


def test_uniform_weights_tied_embeddings_and_nothing_else_moved():
    at = world("text")
    a, b = at["expert_a"], at["expert_b"]
    before = a.fingerprint, b.fingerprint
    model = BTMAverage(experts=(a, b))(Run(0), at["model"])
    assert (a.fingerprint, b.fingerprint) == before and model.about["btm_weights"] == [0.5, 0.5]
    for name, value in model.net.state_dict().items():
        torch.testing.assert_close(value, (a.net.state_dict()[name] + b.net.state_dict()[name]) / 2)
    assert model.net.lm_head.weight is model.net.model.embed_tokens.weight


def test_the_expert_of_the_domain_is_found_and_the_crowd_dropped():
    at = world("text")
    experts = (at["expert_a"], at["expert_b"], at["prior"])
    found = BTMAverage(experts=experts, target=at["target"], rows=20)(Run(0), at["model"]).about["btm_weights"]
    assert max(found) == found[1] and sum(found) == pytest.approx(1)
    kept = BTMAverage(experts=experts, target=at["target"], rows=20, top=2)(Run(0), at["model"]).about["btm_weights"]
    assert sum(w > 0 for w in kept) == 2 and sum(kept) == pytest.approx(1)


@pytest.mark.parametrize("field, value", [("experts", ()), ("top", 3), ("decay", 0.0), ("rows", 0)])
def test_bad_fields_are_named(field, value):
    at = world("text")
    fields = {"experts": (at["expert_a"], at["expert_b"]), "target": at["target"], field: value}
    with pytest.raises(ValueError, match=field):
        BTMAverage(**fields)(Run(0), at["model"])


def test_experts_of_another_form_are_named():
    at = world("text")
    with pytest.raises(ValueError, match=r"experts\[1\].*model.layers.2"):
        BTMAverage(experts=(at["expert_a"], llama(layers=3)))(Run(0), at["model"])
    with pytest.raises(ValueError, match=r"experts\[0\].*\(384, 64\), not \(384, 32\)"):
        BTMAverage(experts=(llama(width=64),))(Run(0), at["model"])


def measure(seed: int, arm: str) -> float:
    """Two experts branched from one model for a domain each; the merged model is for one of the domains."""
    at, run = world("text", seed), Run(seed)
    domain = np.array(at["data"]["domain"].to_pylist())
    experts = tuple(run.fit(at["prior"].copy(), at["data"].where(domain == d), steps=12, **HOW["text"]) for d in "ab")
    order = run.numpy("rows").permutation(len(at["target"]))
    target = at["target"].take(order[:20]) if arm == "method" else None
    model = run.step(BTMAverage(experts=experts, target=target), at["model"])
    return float(
        run.infer(
            model,
            at["target"].take(order[20:]),
            lambda b, o: losses.per_row(losses.rowwise("causal", b, o), b, "causal"),
        ).mean()
    )


CLAIM = Claim(
    method="btm_average",
    world="text",
    rival="uniform average of the experts",
    quantity="loss on other rows of the target domain",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
