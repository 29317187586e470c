from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.color_filter import ColorFilter, loss_reduction
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


@cache
def nouns():
    return world("text")


def row_losses(run, model, data):
    return run.infer(model, data, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).double().numpy()


def test_scores_are_the_textbooks():
    prior, tuned, data = nouns()["prior"], nouns()["expert_b"], nouns()["data"].take(range(12))
    out = ColorFilter(prior=prior, conditional=tuned, keep=1.0)(data)
    for i in range(len(data)):
        batch, loss = data.batch([i], prior), []
        for model in (prior, tuned):
            logp = model(batch)[0].double().log_softmax(-1)
            ids, labels = batch["input_ids"][0], batch["labels"][0]
            terms = [-logp[t - 1, ids[t]].item() for t in range(1, len(ids)) if labels[t] != -100]
            loss.append(sum(terms) / len(terms))
        assert out["color"][i] == pytest.approx(loss[0] - loss[1], abs=1e-5)
    assert loss_reduction(np.array([3.0, 1.0]), np.array([1.0, 2.0])).tolist() == [2.0, -1.0]


def test_it_keeps_the_tuned_domain_to_the_budget():
    data = nouns()["data"]
    kept = ColorFilter(prior=nouns()["prior"], conditional=nouns()["expert_b"], keep=0.2)(data)
    assert len(kept) == round(0.2 * len(data))
    assert np.mean([d == "b" for d in kept["domain"].to_pylist()]) > 0.9
    fewer = ColorFilter(prior=nouns()["prior"], conditional=nouns()["expert_b"], tokens=200)(data)
    assert 0 < np.diff(fewer.lists("input_ids")[1]).sum() <= 200


def test_bad_input_is_named():
    prior, tuned, data = nouns()["prior"], nouns()["expert_b"], nouns()["data"]
    with pytest.raises(ValueError, match="no rows"):
        ColorFilter(prior=prior, conditional=tuned)(data.take([]))
    with pytest.raises(ValueError, match=r"keep=2"):
        ColorFilter(prior=prior, conditional=tuned, keep=2.0)(data)
    pairs = world("pairs")["data"]
    with pytest.raises(
        ValueError, match="the model reads 'input_ids'.*pairs of a chosen and a rejected answer: give one"
    ):
        ColorFilter(prior=prior, conditional=tuned)(pairs)
    with pytest.raises(ValueError, match="prior is a causal model and conditional a classifier"):
        ColorFilter(prior=prior, conditional=world("digits")["model"])(data)


@cache
def conditional():
    return Run(41).fit(nouns()["prior"].copy(), nouns()["target"], steps=20, **HOW["text"])


def measure(seed: int, arm: str) -> float:
    run, tuned = Run(seed), conditional()
    pick = (
        ColorFilter(prior=nouns()["prior"], conditional=tuned, tokens=0.25)
        if arm == "method"
        else RandomRows(tokens=0.25)
    )
    model = run.fit(llama(seed), pick(run, nouns()["data"]), steps=40, **HOW["text"])
    wanted = nouns()["held_out"].where([d == "b" for d in nouns()["held_out"]["domain"].to_pylist()])
    return float(row_losses(run, model, wanted).mean())


CLAIM = Claim(
    method="color_filter",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss on the target domain",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
