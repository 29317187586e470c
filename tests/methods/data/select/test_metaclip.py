from __future__ import annotations

import itertools
from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.metaclip import MetaCLIP, least_cap
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import HOW, llama


def test_a_row_is_kept_where_one_of_its_draws_passes_at_any_cap():
    rng = np.random.default_rng(1)
    pairs = np.unique(np.stack([rng.integers(0, 50, 200), (rng.random(200) ** 3 * 8).astype(int)], 1), axis=0)
    uniform, count = rng.random(len(pairs)), np.bincount(pairs[:, 1])
    cap = least_cap(pairs[:, 0], pairs[:, 1], uniform, 51)
    assert cap[50] == np.inf  # matches nothing
    for t in (2, 5, 20):
        keep = [
            any(u < min(1, t / count[e]) for (r, e), u in zip(pairs, uniform, strict=True) if r == row)
            for row in range(51)
        ]
        assert (cap < t).tolist() == keep


def test_rare_entries_keep_all_and_frequent_ones_about_the_cap():
    data = Data.of(["red cat"] * 1000 + ["blue dog"] * 20 + ["nothing"] * 5)
    sizes = []
    for seed in range(30):
        kept = MetaCLIP(entries=("cat", "dog"), cap=100)(Run(seed), data)
        assert sum("dog" in t for t in kept.text()) == 20 and "nothing" not in list(kept.text())
        sizes.append(len(kept) - 20)
    assert abs(np.mean(sizes) - 100) < 6  # 1000 draws of p = 100 / 1000


def test_a_budget_is_the_sample_at_the_cap_that_fills_it():
    data = Data.of({"text": two_domains.make(200, seed=0)["text"], "n": np.arange(200)})
    how = {"entries": Data.of(list(two_domains.WORDS[:12]))}
    kept = MetaCLIP(**how, keep=0.25)(Run(3), data)
    cap = np.nextafter(kept["metaclip"].max(), np.inf)
    assert len(kept) == 50 and MetaCLIP(**how, cap=cap)(Run(3), data).ids.tolist() == kept.ids.tolist()
    few = MetaCLIP(**how, tokens=200)(Run(3), data)
    assert set(few.ids) <= set(kept.ids) and 150 < sum(len(t.split()) for t in few.text()) <= 200


def test_case_and_bad_input():
    data = Data.of(["A cat, here.", "a CAT", "dog"])
    assert MetaCLIP(entries=("cat",), cap=9)(data).ids.tolist() == [0]
    assert MetaCLIP(entries=("Cat",), cap=9, fold_case=True)(data).ids.tolist() == [0, 1]
    for fields, message in (
        ({"entries": ("bird",)}, "none of the 3 rows"),
        ({"entries": (" ",)}, "entries is empty"),
        ({"cap": 0}, "cap=0:"),
        ({"cap": 1e-9}, "cap=1e-09 leaves none"),
        ({"keep": 1.0}, "keep=1.0 asks for 3 of 3 rows and only 1"),
        ({"column": "body"}, "'body'"),
    ):
        with pytest.raises(ValueError, match=message):
            MetaCLIP(**{"entries": ("cat",), **fields})(data)


@cache
def uneven():
    """Nine texts in ten of domain a, one of b; as entries the pairs of words in a few other texts of both."""
    pool = Data(two_domains.make(360, seed=0, domains=("a",) * 9 + ("b",)))
    other = (t.split() for t in two_domains.make(100, seed=5)["text"].to_pylist())
    entries = tuple(sorted({f"{x} {y}" for t in other for x, y in itertools.pairwise(t)}))
    encode = llama().encode
    return encode(pool), entries, encode(Data(two_domains.make(60, seed=2)))


def measure(seed: int, arm: str) -> float:
    """Loss on both domains alike, after training on a quarter of the tokens."""
    (pool, entries, held_out), run = uneven(), Run(seed)
    pick = MetaCLIP(entries=entries, tokens=0.25) if arm == "method" else RandomRows(tokens=0.25)
    model = run.fit(llama(seed), pick(run, pool), steps=40, **HOW["text"])
    return run.infer(model, held_out, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean().item()


CLAIM = Claim(
    method="metaclip",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss over a frequent and a rare domain alike",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
