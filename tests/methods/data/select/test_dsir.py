from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.dsir import DSIR, kl_reduction, log_ratio
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.primitives.ngrams import Hasher
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

COOK = [
    f"boil the {a} with {b} and salt until it is soft" for a in ("rice", "beans", "fish") for b in ("garlic", "oil")
]
CODE = [f"def f({a}): return {a} + {b} # add" for a in "xyz" for b in "pqr"]


def textbook(raw, target, buckets):
    """Counts, shares and log weights with plain loops."""

    def counts(text):
        z = [0] * buckets
        for b in next(Hasher(2, buckets).grams([text])).bucket:
            z[b] += 1
        return z

    def shares(rows):
        total = [sum(z[b] for z in rows) for b in range(buckets)]
        return [t / sum(total) for t in total]

    zs = [counts(t) for t in raw]
    p, q = shares([counts(t) for t in target]), shares(zs)
    return [sum(z[b] * (np.log(p[b] + 1e-8) - np.log(q[b] + 1e-8)) for b in range(buckets)) for z in zs]


def test_log_weights_are_the_textbooks():
    data = Data.of(COOK + CODE)
    out = DSIR(target=Data.of(COOK[:2]), keep=1.0, buckets=64, min_words=0)(data)
    assert np.allclose(out["dsir"], textbook(COOK + CODE, COOK[:2], 64))


def test_kl_reduction_is_the_difference_of_two_divergences():
    t, r, c = (np.array(x, float) for x in ([5, 3, 2], [1, 1, 8], [4, 4, 2]))
    kl = [sum(p * np.log(p / q) for p, q in zip(t / 10, x / 10, strict=True)) for x in (r, c)]
    assert kl_reduction(t, r, c) == pytest.approx(kl[0] - kl[1], abs=1e-6)
    assert kl_reduction(t, r, r) == 0 and log_ratio(r, r).tolist() == [0, 0, 0]


def test_it_finds_the_target_and_noise_is_the_seeds():
    data, target = Data.of(COOK + CODE * 10), Data.of(COOK[:2])
    top = DSIR(target=target, keep=6 / 96, min_words=0, noise=False)(data)
    assert sorted(top.text()) == sorted(COOK)
    draws = [
        DSIR(target=data, keep=0.5, min_words=0)(Run(s), data).ids.tolist() for s in (0, 0, 1)
    ]  # all weights alike
    assert draws[0] == draws[1] != draws[2]


def test_a_budget_in_tokens_and_a_least_length():
    data = Data.of(COOK * 5 + ["salt"] * 50)
    rows = DSIR(target=Data.of(COOK), tokens=55, min_words=5, noise=False)(data)
    assert len(rows) == 5 and all(len(t.split()) == 11 for t in rows.text())
    with pytest.raises(ValueError, match=r"keep=0.9 asks for 72 of 80 rows and only 30"):
        DSIR(target=Data.of(COOK), keep=0.9, min_words=5)(data)
    with pytest.raises(ValueError, match=r"min_words=100: none of the 80 rows .* 11 words"):
        DSIR(target=Data.of(COOK))(data)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="target has no words"):
        DSIR(target=Data.of(["  "]), min_words=0)(Data.of(COOK))
    with pytest.raises(ValueError, match="'body'"):
        DSIR(target=Data.of(COOK), column="body")(Data.of(COOK))
    with pytest.raises(ValueError, match="hash='md5'"):
        DSIR(target=Data.of(COOK), hash="md5")(Data.of(COOK))


@cache
def text_world():
    return world("text")


def measure(seed: int, arm: str) -> float:
    nouns, run = text_world(), Run(seed)
    pick = DSIR(target=nouns["target"], tokens=0.25, min_words=0) if arm == "method" else RandomRows(tokens=0.25)
    kept = pick(run, nouns["data"])
    model = run.fit(world_model(seed), kept, steps=40, **HOW["text"])
    wanted = nouns["held_out"].where([d == "b" for d in nouns["held_out"]["domain"].to_pylist()])
    return target_loss(run, model, wanted)


def world_model(seed):
    from trainlore.worlds.tiny import llama

    return llama(seed)


def target_loss(run, model, data) -> float:
    from trainlore.primitives.losses import per_row, rowwise

    return run.infer(model, data, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean().item()


CLAIM = Claim(
    method="dsir",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss on the target domain",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
