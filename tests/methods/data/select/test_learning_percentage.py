from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.learning_percentage import LearningPercentage, learned
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import data, two_domains
from trainlore.worlds.tiny import HOW, llama


def test_the_share_learned_in_the_first_epoch():
    before, first, last = (
        np.array([10.0, 8.0, 4.0, 5.0]),
        np.array([4.0, 7.0, 5.0, 4.0]),
        np.array([2.0, 4.0, 3.0, 5.0]),
    )
    assert learned(before, first, last).tolist() == [0.75, 0.25, -1.0, 0.0]
    assert learned(before, first).tolist() == pytest.approx([0.6, 0.125, -0.25, 0.2])


def digits(n):
    return Data(data("digits/train").take(range(n)).arrow())


def perplexity(run, model, rows):
    return np.exp(run.infer(model, rows, lambda b, o: rowwise("classifier", b, o)).numpy())


@pytest.mark.parametrize("epochs", [1, 3])
def test_scores_are_those_of_a_training_by_hand(epochs):
    rows, small = digits(96), preset("mlp", seed=0, width=8)
    made = small.fingerprint
    out = LearningPercentage(model=small, keep=0.25, epochs=epochs, clusters=1, lr=1e-2)(Run(3), rows)
    assert small.fingerprint == made
    run, model = Run(3), small.copy()
    seen = [perplexity(run, model, rows)]
    for more in (1, epochs - 1):
        if more:
            run.fit(model, rows, epochs=more, batch_size=32, lr=1e-2)
            seen.append(perplexity(run, model, rows))
    score = (seen[0] - seen[1]) / (seen[0] - seen[2] if epochs > 1 else seen[0])
    assert np.allclose(out.whole()["learning_percentage"], score, rtol=1e-3, atol=1e-4)
    assert out.ids.tolist() == sorted(np.argsort(score, kind="stable")[:24].tolist())


def test_each_cluster_gives_its_share():
    rows = digits(100)
    picked = LearningPercentage(model=preset("mlp", seed=0, width=8), keep=0.5, epochs=1, clusters=3)(Run(0), rows)
    rest = picked.dropped()
    assert len(picked) == 50 and picked["learning_percentage"].mean() < rest["learning_percentage"].mean()
    one = LearningPercentage(model=preset("mlp", seed=0, width=8), keep=0.5, epochs=1, clusters=1)(Run(0), rows)
    assert (
        picked["learning_percentage"].mean() > one["learning_percentage"].mean()
    )  # diversity costs some of the lowest


def test_bad_input_is_named():
    rows, small = digits(10), preset("mlp", seed=0, width=8)
    for fields, source, said in (
        ({"epochs": 0}, rows, "epochs=0"),
        ({"clusters": 11}, rows, "clusters=11"),
        ({"keep": 0.0, "epochs": 1, "clusters": 2}, rows, "keep=0.0"),
        ({}, rows.take([]), "no rows"),
    ):
        with pytest.raises(ValueError, match=said):
            LearningPercentage(model=small, **fields)(source)


def test_a_text_beyond_the_window_is_cut_and_made_tokens_once(monkeypatch):
    plain, model, calls = Data(two_domains.make(20, seed=0)), llama(), []
    lines = list(plain.text())
    lines[7] = " ".join(lines * 20)
    real = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda *a, **how: calls.append(1) or real(*a, **how))
    picked = LearningPercentage(model=model, keep=0.5, clusters=2)(Run(0), plain.with_(text=lines))
    assert len(picked) == 10 and len(calls) == 1 and np.isfinite(picked.whole()["learning_percentage"]).all()
    assert picked.columns == [*plain.columns, "learning_percentage"]
    with pytest.raises(ValueError, match="learning_percentage: the model reads 'input_ids'.*give one text a row"):
        LearningPercentage(model=model)(Data(two_domains.pairs(9, seed=0)))


@cache
def texts(n, seed):
    return llama().encode(Data(two_domains.make(n, seed=seed)))


def measure(seed: int, arm: str) -> float:
    """Held-out loss of a model after training on a quarter of the tokens, chosen by a model a quarter as large."""
    run = Run(seed)
    how = {"epochs": 1, "clusters": 10, "batch_size": 8, "lr": 3e-3}
    small = llama(seed, width=16, layers=1)
    pick = LearningPercentage(model=small, tokens=0.25, **how) if arm == "method" else RandomRows(tokens=0.25)
    model = run.fit(llama(seed), pick(run, texts(300, 0)), steps=40, **HOW["text"])
    return float(run.infer(model, texts(60, 2), lambda b, o: per_row(rowwise("causal", b, o), b, "causal")).mean())


CLAIM = Claim(
    method="learning_percentage",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss after training on a quarter of the tokens",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
