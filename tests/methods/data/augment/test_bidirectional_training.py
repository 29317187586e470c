from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.augment.bidirectional_training import BidirectionalTraining, both_ways
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import llama

CIPHER = np.random.default_rng(5).permutation(10)


def secrets(n, seed):
    """Four digits and what they are in a secret alphabet."""
    digits = np.random.default_rng(seed).integers(0, 10, (n, 4))
    write = lambda rows: ["".join(map(str, row)) for row in rows]
    return Data.of({"prompt": [q + "=" for q in write(digits)], "completion": write(CIPHER[digits])})


class Watched(Run):
    """A run that remembers what was trained on and how."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (data, how)]
        return super().fit(model, data, *parts, **how)


def test_every_pair_is_there_both_ways():
    out = both_ways(Data.of({"prompt": ["1", "2"], "completion": ["one", "two"], "weight": [1.0, 3.0]}))
    assert list(out.text("prompt")) == ["1", "2", "one", "two"]
    assert list(out.text("completion")) == ["one", "two", "1", "2"]
    assert out["weight"].tolist() == [1, 3, 1, 3] and out["parents"].tolist() == [0, 1, 0, 1]


def test_a_third_of_the_steps_reads_both_directions_and_the_rest_one():
    run, model = Watched(0), llama(arithmetic=True)
    data = model.encode(secrets(8, 0))  # encoded: the turned rows must be encoded anew
    BidirectionalTraining(steps=9, batch_size=4)(run, model, data)
    (first, how_first), (second, how_second) = run.fits
    assert (how_first["steps"], how_second["steps"]) == (3, 6) and len(first) == 16 and second is data
    assert "input_ids" not in first.columns


def test_without_a_share_it_is_training_as_usual():
    plain = Run(0).fit(llama(arithmetic=True), secrets(8, 0), steps=4, batch_size=4, lr=1e-3)
    mine = BidirectionalTraining(share=0.0, steps=4, batch_size=4)(Run(0), llama(arithmetic=True), secrets(8, 0))
    assert mine.fingerprint == plain.fingerprint


def test_bad_input_is_named():
    for fields, name in (
        ({"share": 1.0}, "share=1.0"),
        ({"steps": 0}, "steps=0"),
        ({"share": 0.9, "steps": 2}, "leaves none"),
    ):
        with pytest.raises(ValueError, match=name):
            BidirectionalTraining(**fields)(llama(arithmetic=True), secrets(4, 0))
    with pytest.raises(ValueError, match="'completion'"):
        BidirectionalTraining()(llama(), Data.of({"prompt": ["a"]}))


def measure(seed: int, arm: str) -> float:
    run, share = Run(seed), 1 / 3 if arm == "method" else 0.0
    method = BidirectionalTraining(share=share, steps=100, lr=3e-3)
    model = method(run, llama(seed, arithmetic=True), secrets(30, 5000 + seed))
    return (
        run.infer(model, secrets(200, 7), lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean().item()
    )


CLAIM = Claim(
    method="bidirectional_training",
    world="sums",
    rival="the wanted direction alone, at the same number of steps",
    quantity="held-out loss on a cipher of four digits learned from 30 pairs",
    better="lower",
    measure=measure,
    seeds=10,
    quick=1,
)
