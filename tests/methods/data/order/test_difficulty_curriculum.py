"""Difficulty-weighted curriculum: heuristics and weights by hand, and a small re-ranker."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.order import difficulty_curriculum as module
from trainlore.methods.data.order.difficulty_curriculum import (
    DifficultyCurriculum,
    normalised,
    percentile,
    reciprocal_rank,
    weight,
)
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds.tiny import world

SCORE = np.array([3.0, 9.0, 5.0, 1.0, 1.0, 2.0])
QUERY = np.array([0, 1, 0, 0, 1, 1])


def test_the_heuristics_by_hand():
    assert reciprocal_rank(SCORE, QUERY).tolist() == pytest.approx([1 / 2, 1, 1, 1 / 3, 1 / 3, 1 / 2])
    assert normalised(SCORE, QUERY).tolist() == pytest.approx([0.5, 1, 1, 0, 0, 1 / 8])
    assert (
        normalised(np.ones(3), np.zeros(3, int)).tolist()
        == [0.5] * 3
        == percentile(np.ones(3), np.zeros(3, int)).tolist()
    )


@pytest.mark.parametrize("pairs", [1, 7, 1 << 22])
def test_percentiles_are_those_of_the_authors_density(pairs, monkeypatch):
    from scipy.stats import gaussian_kde

    monkeypatch.setattr(module, "PAIRS", pairs)

    for q in (0, 1):
        rows = np.flatnonzero(q == QUERY)
        kde = gaussian_kde(SCORE[rows])
        by_hand = [kde.integrate_box_1d(-np.inf, x) for x in SCORE[rows]]
        assert percentile(SCORE, QUERY)[rows].tolist() == pytest.approx(by_hand, abs=1e-6)


class Fake:
    def __init__(self, data, done=0.0):
        self.data, self.done = data, done


DATA = Data.of({"score": SCORE, "q": ["x", "y", "x", "x", "y", "y"], "label": [1, 1, 0, 1, 0, 0]})


def weights(part, done):
    ones = torch.ones(6)
    return part.loss(
        Fake(DATA, done), part.start(Fake(DATA)), {"row": torch.arange(6)}, None, lambda b, out: ones
    ).tolist()


def test_weights_start_at_the_ease_and_rise_to_one():
    part = DifficultyCurriculum(by="score", query="q", until=0.4)
    ease = [1 / 2, 1, 1 - 1, 1 / 3, 1 - 1 / 3, 1 - 1 / 2]
    assert weights(part, 0.0) == pytest.approx(ease)
    assert weights(part, 0.1) == pytest.approx([e + 0.25 * (1 - e) for e in ease])
    assert weights(part, 0.4) == [1.0] * 6 == weights(DifficultyCurriculum(by="score", until=0.0), 0.0)
    assert float(weight(torch.tensor(0.2), 0.5)) == pytest.approx(0.6)


def test_tokens_share_their_row_s_weight_and_rows_of_others_count_whole():
    data = Data.of({"ease": [0.25, 0.5]})
    part = DifficultyCurriculum(by="ease", heuristic="ease")
    told = part.loss(
        Fake(data), part.start(Fake(data)), {"row": torch.tensor([1, -1])}, None, lambda b, out: torch.ones(2, 3)
    )
    assert told.tolist() == [[0.5] * 3, [1.0] * 3]


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"until": 1.5}, "until"),
        ({"by": "nothing"}, "nothing"),
        ({"by": "q"}, "number"),
        ({"heuristic": "ease"}, "0..1"),
    ],
)
def test_bad_fields_are_named(fields, why):
    with pytest.raises(ValueError, match=why):
        DifficultyCurriculum(**{"by": "score", **fields}).start(Fake(DATA))


def candidates(part, lists, seed):
    """Lists of ten images for a wanted digit, one of them right, scored by how near the digit's mean image they are."""
    nouns, rng = world("digits"), np.random.default_rng(seed)
    x, y = (np.asarray(nouns[part][c]) for c in ("features", "label"))
    few = np.asarray(nouns["data"]["features"])[:60], np.asarray(nouns["data"]["label"])[:60]
    mean = np.stack([few[0][few[1] == k].mean(0) for k in range(10)])
    wanted = rng.integers(0, 10, lists)
    rows = np.stack([np.r_[rng.choice(np.flatnonzero(y == k)), rng.choice(np.flatnonzero(y != k), 9)] for k in wanted])
    image, query = x[rows.ravel()], np.repeat(wanted, 10)
    columns = {
        "features": np.concatenate([image, np.eye(10, dtype=np.float32)[query]], 1),
        "q": np.repeat(np.arange(lists), 10),
    }
    columns |= {"score": -np.linalg.norm(image - mean[query], axis=1), "label": np.tile([1] + [0] * 9, lists)}
    return Data.of(columns)


def measure(seed: int, arm: str) -> float:
    """How often a trained re-ranker puts the right candidate first."""
    run, model = Run(seed), preset("mlp", seed=seed, width=64, inputs=74, classes=2)
    parts = [DifficultyCurriculum(by="score", heuristic="score", query="q")] if arm == "method" else []
    run.fit(model, candidates("data", 200, 1), *parts, steps=200, batch_size=32, lr=3e-3, precision="fp32")
    score = run.infer(model, candidates("test", 200, 2), lambda b, out: out[:, 1] - out[:, 0]).reshape(200, 10)
    return float((score.argmax(1) == 0).float().mean())


CLAIM = Claim(
    method="difficulty_curriculum",
    world="digits",
    rival="all rows weighed alike",
    quantity="share of lists with the right candidate first",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
