"""Curriculum: how many rows are open, and which."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.order.curriculum import Curriculum, competence, difficulty
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_paper_s_square_root():
    """c(t) = sqrt(t (1 - c0^2) / T + c0^2) with c0 = 0.01."""
    for done in np.linspace(0, 1, 11):
        assert competence(done, 0.01) == pytest.approx((done * (1 - 0.01**2) + 0.01**2) ** 0.5)
    assert competence(0.5, 0.2, power=1.0) == pytest.approx(0.6)
    assert competence(2.0, 0.2) == 1.0


class Fake:
    def __init__(self, data, done=0.0, size=1):
        self.data, self.done, self.size = data, done, size


def opened(part, data, done, size=1):
    s = part.start(Fake(data))
    odds = part.odds(Fake(data, done, size), s)
    return list(range(len(data))) if odds is None else torch.nonzero(odds).flatten().tolist()


def test_the_easiest_rows_open_first():
    data = Data.of({"hard": np.array([5.0, 1.0, np.nan, 3.0, 1.0])})
    assert opened(Curriculum(by="hard", begin=0.2, until=1.0), data, 0.0) == [1, 4]  # a tie opens together
    assert opened(Curriculum(by="hard", begin=0.2, until=1.0), data, 0.0, size=3) == [1, 3, 4]  # at least a batch
    assert opened(Curriculum(by="hard", begin=0.2, until=1.0, power=1.0), data, 0.75) == [0, 1, 3, 4]
    assert opened(Curriculum(by="hard", begin=0.2, until=0.5), data, 0.5) == [0, 1, 2, 3, 4]
    assert opened(Curriculum(by="hard", begin=0.2, hardest_first=True), data, 0.0) == [2]


def test_lists_count_by_length():
    data = Data.of({"input_ids": [[1, 2, 3], [1], [1, 2]], "text": ["a", "b", "c"]})
    assert difficulty(data, "input_ids").tolist() == [3, 1, 2]
    with pytest.raises(ValueError, match="text"):
        difficulty(data, "text")


@pytest.mark.parametrize("fields", [{"begin": 0.0}, {"begin": 1.5}, {"until": 0.0}, {"power": 0.0}, {"by": "nothing"}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields)) if "by" not in fields else "nothing"):
        Curriculum(**{"by": "hard", **fields}).start(Fake(Data.of({"hard": [1.0]})))


def measure(seed: int, arm: str) -> float:
    """The held-out loss after 60 steps, from short to long or shuffled."""
    nouns, run = world("text", seed), Run(seed)
    parts = [Curriculum(by="input_ids")] if arm == "method" else []
    model = run.fit(nouns["model"], nouns["data"], *parts, steps=60, **HOW["text"])
    return float(
        run.infer(model, nouns["held_out"], lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean()
    )


CLAIM = Claim(
    method="curriculum",
    world="text",
    rival="shuffled rows",
    quantity="held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
