from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.dfn import DFN
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data, two_domains
from trainlore.worlds.tiny import HOW


def test_wrong_labels_match_worse_than_right_ones_and_the_highest_are_kept():
    noisy, trusted = data("digits/noisy"), data("digits/spare")
    trusted = trusted.with_(label=trusted["truth"])
    scored = DFN(trusted=trusted, columns=("features", "label"), keep=1.0, steps=100)(noisy)
    wrong = scored["label"] != scored["truth"]
    assert np.median(scored["dfn"][wrong]) < np.quantile(scored["dfn"][~wrong], 0.1)
    assert (np.abs(scored["dfn"]) <= 1 + 1e-6).all()
    kept = DFN(trusted=trusted, columns=("features", "label"), keep=0.5, steps=100)(noisy)
    assert kept.ids.tolist() == np.sort(np.argsort(-scored["dfn"], kind="stable")[:500]).tolist()


def test_text_pairs_are_matched_by_what_they_share_and_single_texts_by_likeness():
    names = [f"word{i}" for i in range(12)]
    trusted = Data.of(
        {"prompt": [f"about {w} please" for w in names] * 4, "completion": [f"{w.upper()} it is" for w in names] * 4}
    )
    raw = Data.of(
        {
            "prompt": [f"about {w} please" for w in names] * 2,
            "completion": [f"{w.upper()} it is" for w in names + names[1:] + names[:1]],
        }
    )
    kept = DFN(trusted=trusted, columns=("prompt", "completion"), keep=0.5, steps=150)(raw)
    assert kept.ids.tolist() == list(range(12))
    mixed, wanted = Data(two_domains.make(120, seed=0)), Data(two_domains.make(60, seed=1, domains=("b",)))
    run = Run(0)
    kept = run.step(DFN(trusted=wanted, tokens=0.4, steps=100, lr=1e-2), mixed)
    assert np.mean([d == "b" for d in kept["domain"].to_pylist()]) > 0.85
    assert run.meter.work > 0


def test_bad_input_is_named():
    some = Data.of({"text": ["a", "b"], "ids": [[1, 2], [3]]})
    for fields, message in (
        ({"columns": ("text", "text", "text")}, "columns="),
        ({"columns": ("body",)}, "'body'"),
        ({"columns": ("ids",)}, "'ids' holds tokens"),
        ({"trusted": Data.of({"text": [1, 2]})}, "not of one form"),
        ({"steps": 0}, "steps"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"trusted": some.take([])}, "trusted data was given no rows"),
        ({"columns": ("text", "text"), "trusted": some.take([0])}, "a single pair"),
    ):
        with pytest.raises(ValueError, match=message):
            DFN(**{"trusted": some, "steps": 1, **fields})(some)


@cache
def digits():
    return {part: data(f"digits/{part}") for part in ("noisy", "spare", "test")}


def measure(seed: int, arm: str) -> float:
    """Test accuracy of a network trained on half of the rows, of which a fifth are wrong; 100 trusted rows."""
    parts, run = digits(), Run(seed)
    few = parts["spare"].take(run.numpy("trusted").permutation(397)[:100])
    few = few.with_(label=few["truth"])
    pick = DFN(trusted=few, columns=("features", "label"), keep=0.5) if arm == "method" else RandomRows(keep=0.5)
    model = run.fit(preset("mlp", seed=seed, width=32), pick(run, parts["noisy"]), steps=100, **HOW["digits"])
    return run.infer(model, parts["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean().item()


CLAIM = Claim(
    method="dfn",
    world="digits",
    rival="random_rows at the same number of rows",
    quantity="test accuracy of a network trained on what is kept, a fifth of the raw labels being wrong",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
