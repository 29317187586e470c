from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.qurating import QuRating
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data, Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import HOW, llama


def judged(n=200, seed=5):
    """Pairs of an ordered text and one of words without order; nine judges in ten prefer the ordered one."""
    clean = two_domains.make(n, seed=seed)["text"].to_pylist()
    noise = two_domains.make(3 * n, seed=seed + 1, noise=0.5)
    noise = [t for t, made in zip(noise["text"].to_pylist(), noise["made"].to_pylist(), strict=True) if made == "noise"]
    turned = np.arange(n) % 2 == 1
    return Data.of(
        {
            "chosen": [b if t else a for a, b, t in zip(clean, noise, turned, strict=False)],
            "rejected": [a if t else b for a, b, t in zip(clean, noise, turned, strict=False)],
            "share": np.where(turned, 0.1, 0.9),
        }
    )


def test_rows_are_drawn_by_the_rating_over_the_temperature():
    data = Data(two_domains.make(100, seed=0, noise=0.5))
    how = {"pairs": judged(), "buckets": 1 << 12, "keep": 0.2}
    rating = QuRating(**{**how, "keep": 1.0})(Run(1), data)["qurating"]
    assert abs(rating.mean()) < 1e-9 and rating.std() == pytest.approx(1)
    noise = Run(1).numpy("qurating").gumbel(size=100)
    for temperature in (0.0, 0.5, 2.0):
        order = rating / temperature + noise if temperature else rating
        kept = QuRating(**how, temperature=temperature)(Run(1), data)
        assert kept.ids.tolist() == np.sort(np.argsort(-order)[:20]).tolist()
    made = np.array(data["made"].to_pylist())
    assert rating[made == "clean"].mean() - rating[made == "noise"].mean() > 1


def words(data):
    """Words of each kind of text."""
    kinds = data["made"].to_pylist()
    size = [len(t.split()) for t in data.text()]
    return {m: sum(n for n, k in zip(size, kinds, strict=True) if k == m) for m in ("clean", "noise")}


def test_only_sure_pairs_teach_and_every_domain_keeps_its_part():
    data = Data(two_domains.make(100, seed=0, noise=0.5))
    pairs, how = judged(60), {"buckets": 1 << 12, "temperature": 0.0}
    doubtful = pairs.with_(share=np.where(np.arange(60) < 30, pairs["share"], 0.7))  # |2 p - 1| = 0.4
    same = [QuRating(pairs=p, **how)(data).ids.tolist() for p in (doubtful, pairs.take(range(30)))]
    assert same[0] == same[1]
    for budget in ({"keep": 0.3}, {"tokens": 0.3}, {"tokens": 750.0}):
        kept = QuRating(pairs=pairs, domains="made", **budget, **how)(data)
        mine, all_ = words(kept), words(data)
        assert all(mine[m] / all_[m] == pytest.approx(0.3, abs=0.06) for m in all_)


def test_a_network_learns_to_rate():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    tokenizer = two_domains.tokenizer()
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, pad_token_id=tokenizer.pad_token_id, num_labels=1)  # fmt: skip
    with Run(0).global_rng("weights"):
        rater = Model(LlamaForSequenceClassification(config).eval(), "regressor", tokenizer)
    before, run = rater.fingerprint, Run(0)
    data = Data(two_domains.make(60, seed=0, domains=("a", "b")))
    texts = two_domains.make(160, seed=3)
    by = {
        d: [t for t, x in zip(texts["text"].to_pylist(), texts["domain"].to_pylist(), strict=True) if x == d]
        for d in "ab"
    }
    pairs = Data.of({"chosen": by["b"], "rejected": by["a"]})
    scored = run.step(QuRating(pairs=pairs, rater=rater, keep=1.0, steps=40, batch_size=32, lr=3e-3), data)
    domain = np.array(data["domain"].to_pylist())
    assert scored["qurating"][domain == "b"].mean() - scored["qurating"][domain == "a"].mean() > 1
    assert rater.fingerprint == before and run.meter.work > 0
    with pytest.raises(ValueError, match="one number each"):
        QuRating(pairs=pairs, rater=llama(), steps=1)(data)


def test_bad_input_is_named():
    data, pairs = Data.of(["a b", "c"]), Data.of({"chosen": ["a"], "rejected": ["b"], "share": [0.6]})
    for fields, message in (
        ({}, "confidence=0.5: none of the 1 pairs"),
        ({"pairs": data}, "'chosen', 'rejected'"),
        ({"pairs": pairs.with_(share=[1.2])}, "share holds values outside"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"keep": 0.0, "confidence": 0.0}, "keep=0"),
        ({"domains": "source", "confidence": 0.0}, "'source'"),
        ({"column": "body"}, "'body'"),
    ):
        with pytest.raises(ValueError, match=message):
            QuRating(**{"pairs": pairs, **fields})(data)


@cache
def half_noise():
    encode = llama().encode
    return encode(Data(two_domains.make(300, seed=0, noise=0.5))), judged(), encode(Data(two_domains.make(60, seed=2)))


def measure(seed: int, arm: str) -> float:
    (pool, pairs, held_out), run = half_noise(), Run(seed)
    pick = QuRating(pairs=pairs, tokens=0.25, buckets=1 << 12) if arm == "method" else RandomRows(tokens=0.25)
    model = run.fit(llama(seed), pick(run, pool), steps=40, **HOW["text"])
    return run.infer(model, held_out, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean().item()


CLAIM = Claim(
    method="qurating",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss on texts of the kind that judges prefer",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
