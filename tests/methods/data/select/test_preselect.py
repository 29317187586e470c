from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.preselect import PreSelect, extremes, predictive_strength
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world

SIX = np.array([75.38, 76.30, 77.27, 79.46, 80.47, 81.19])  # the authors' six Llamas


def test_strength_counts_the_pairs_in_order():
    rng = np.random.default_rng(0)
    loss, ability = rng.integers(0, 4, (30, 5)), np.array([3.0, 1, 2, 2, 5])  # with ties in both
    want = []
    for row in loss:
        pairs = [(i, j) for i in range(5) for j in range(5) if ability[i] < ability[j]]
        want.append(sum(row[i] > row[j] for i, j in pairs) / len(pairs))
    assert np.allclose(predictive_strength(loss, ability), want)
    one_swapped = np.array([[6.0, 5, 4, 3, 2, 1], [5, 6, 4, 3, 2, 1], [1, 2, 3, 4, 5, 6]])
    assert predictive_strength(one_swapped, SIX).tolist() == [1.0, pytest.approx(14 / 15), 0.0]


def test_extremes_are_those_with_all_pairs_right_and_as_many_from_the_bottom():
    strength = np.array([1.0, 0.2, 1.0, 0.4, 0.0, 0.6])
    strong, weak = extremes(strength)
    assert strong.tolist() == [0, 2] and sorted(weak) == [1, 4]
    strong, weak = extremes(np.array([1.0, 1.0, 1.0, 0.0]))
    assert strong.tolist() == [0] and weak.tolist() == [3]
    strong, weak = extremes(strength, 0.5)
    assert sorted(strong) == [0, 2, 5] and sorted(weak) == [1, 3, 4]


def test_it_finds_the_domain_its_models_differ_in():
    nouns = world("text")
    models = tuple(nouns[k] for k in ("expert_a", "prior", "expert_b"))
    how = {"models": models, "ability": (1.0, 2.0, 3.0), "buckets": 1 << 12}
    kept = PreSelect(**how, keep=0.25, sample=150)(Run(0), nouns["data"])
    every = PreSelect(**how, keep=1.0, sample=150)(Run(0), nouns["data"])
    assert kept.ids.tolist() == np.sort(np.argsort(-every["preselect"], kind="stable")[:75]).tolist()
    assert np.mean([d == "b" for d in kept["domain"].to_pylist()]) > 0.8
    turned = PreSelect(**{**how, "ability": (3.0, 2.0, 1.0)}, tokens=0.25)(Run(0), nouns["data"])
    assert np.mean([d == "a" for d in turned["domain"].to_pylist()]) > 0.8


def test_bad_input_is_named():
    nouns = world("text")
    two, few = (nouns["prior"], nouns["expert_b"]), nouns["data"].take(range(20))
    for fields, message in (
        ({"ability": (1.0,)}, "2 models and ability"),
        ({"ability": (1.0, 1.0)}, "not all equal"),
        ({"models": (preset("mlp"), nouns["prior"])}, "causal models, not classifier, causal"),
        ({"models": (nouns["prior"], nouns["prior"])}, "order the models alike"),
        ({"sample": 1}, "sample=1"),
        ({"share": 0.7}, "share=0.7"),
        ({"keep": 0.0, "buckets": 64}, "keep=0"),
        ({"column": "body"}, "'body'"),
    ):
        with pytest.raises(ValueError, match=message):
            PreSelect(**{"models": two, "ability": (1.0, 2.0), **fields})(few)
    with pytest.raises(ValueError, match="window"):
        PreSelect(models=two, ability=(1.0, 2.0))(Data.of(["bada " * 500, "geli"]))


@cache
def ranked():
    """Four models and their abilities on the target domain; the data; the domain held out."""
    nouns, run = world("text"), Run(0)
    models = tuple(nouns[k] for k in ("expert_a", "prior", "teacher", "expert_b"))
    wanted = nouns["held_out"].where([d == "b" for d in nouns["held_out"]["domain"].to_pylist()])
    return models, tuple(-loss(run, m, nouns["target"]) for m in models), nouns["data"], wanted


def loss(run, model, data):
    return run.infer(model, data, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean().item()


def measure(seed: int, arm: str) -> float:
    (models, ability, data, wanted), run = ranked(), Run(seed)
    pick = (
        PreSelect(models=models, ability=ability, tokens=0.25, sample=150, buckets=1 << 12)
        if arm == "method"
        else RandomRows(tokens=0.25)
    )
    return loss(run, run.fit(llama(seed), pick(run, data), steps=40, **HOW["text"]), wanted)


CLAIM = Claim(
    method="preselect",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss on the domain that the models are ranked by",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
