from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

DATA = Data.of({"text": ["w " * (1 + i % 7) for i in range(200)], "features": np.zeros((200, 2), np.float32)})


def words(data: Data) -> int:
    return sum(len(t.split()) for t in data.text())


def test_budgets_are_met_and_draws_are_the_seeds():
    for seed in range(3):
        assert len(RandomRows(keep=0.1)(Run(seed), DATA)) == 20
        assert 94 <= words(RandomRows(tokens=100)(Run(seed), DATA)) <= 100
        assert words(RandomRows(tokens=0.5)(Run(seed), DATA)) == pytest.approx(words(DATA) / 2, abs=7)
    assert RandomRows(keep=0.1)(Run(0), DATA).ids.tolist() == RandomRows(keep=0.1)(Run(0), DATA).ids.tolist()
    assert RandomRows(keep=0.1)(Run(0), DATA).ids.tolist() != RandomRows(keep=0.1)(Run(1), DATA).ids.tolist()


def test_draws_are_nested_ordered_and_even():
    small, large = RandomRows(keep=0.1)(Run(5), DATA).ids, RandomRows(keep=0.4)(Run(5), DATA).ids
    assert set(small) < set(large) and (np.diff(large) > 0).all()
    hits = np.zeros(200)
    for seed in range(200):
        hits[RandomRows(keep=0.25)(Run(seed), DATA).ids] += 1
    # Each row is drawn 50 times in 200, give or take a standard deviation of 6.1.
    assert abs(hits - 50).max() < 5 * 6.2 and abs(np.corrcoef(hits, np.arange(200))[0, 1]) < 0.3


def test_bad_budgets_are_named():
    for bad in (0.0, -1.0, 1.5):
        with pytest.raises(ValueError, match=f"keep={bad}"):
            RandomRows(keep=bad)(DATA)
    with pytest.raises(ValueError, match=r"input_ids, text .* Give keep"):
        RandomRows(tokens=5)(Data.of({"features": np.zeros((4, 2), np.float32)}))
    with pytest.raises(ValueError, match="no rows"):
        RandomRows()(DATA.where(np.zeros(200, bool)))


def measure(seed: int, arm: str) -> float:
    """Test accuracy after training on a fifth of a pool that lies sorted by label, as files often do."""
    nouns, run = world("digits", seed), Run(seed)
    pool = nouns["data"].take(np.argsort(nouns["data"]["label"], kind="stable"))
    kept = RandomRows(keep=0.2)(run, pool) if arm == "method" else pool.take(range(len(pool) // 5))
    model = run.fit(nouns["model"], kept, steps=40, **HOW["digits"])
    return float(
        (run.infer(model, nouns["test"], lambda batch, out: out.argmax(-1)).numpy() == nouns["test"]["label"]).mean()
    )


CLAIM = Claim(
    method="random_rows",
    world="digits",
    rival="the first rows of a sorted pool",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
