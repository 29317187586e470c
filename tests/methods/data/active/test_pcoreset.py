from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.kd import KD
from trainlore.methods.data.active.active_learning import ActiveLearning
from trainlore.methods.data.active.pcoreset import PCoreSet, farthest
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import _teacher, world


@pytest.mark.parametrize("block", [3, 1024])
def test_each_row_is_the_farthest_from_all_before_it(block):
    rng = torch.Generator().manual_seed(0)
    points, centres = (torch.rand(n, 4, generator=rng, dtype=torch.float64).softmax(-1) for n in (20, 3))
    picked, distance = farthest(points, centres, 6, block)
    taken = [c.numpy() for c in centres]
    for i in range(6):
        gaps = [
            min(np.linalg.norm(p.numpy() - c) for c in taken) if n not in picked[:i] else -1
            for n, p in enumerate(points)
        ]
        assert picked[i] == np.argmax(gaps) and distance[i] == pytest.approx(max(gaps))
        taken.append(points[picked[i]].numpy())


def test_predictions_count_and_not_features():
    net = torch.nn.Linear(2, 2, bias=False)
    net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])  # blind to the second feature
    pool = Data.of({"features": np.array([[0, 99], [0, -99], [3, 0], [-3, 0]], np.float32)})
    labelled = Data.of({"features": np.array([[0.1, 0]], np.float32), "label": [0]})
    got = PCoreSet(model=Model(net), count=2, labelled=labelled)(Run(0), pool)
    assert got.ids.tolist() == [2, 3]
    assert got["pcoreset"][1] > got["pcoreset"][0] > 0.5  # -3 is a little farther from 0.1 than 3 is


def test_without_labelled_rows_the_first_is_drawn_and_none_comes_twice():
    at = world("digits")
    same = at["spare"].take([4] * 3 + [9] * 3)
    got = PCoreSet(model=at["model"], count=6)(Run(0), same)
    assert len(got) == 6 and got["pcoreset"].max() == 2**0.5
    firsts = {int(PCoreSet(model=at["model"], count=1)(Run(s), at["spare"]).ids[0]) for s in range(4)}
    assert len(firsts) > 1


def test_bad_input_is_named():
    at = world("digits")
    for fields, says in (({}, "no model"), ({"model": at["model"], "count": -1}, "count=-1")):
        with pytest.raises(ValueError, match=says):
            PCoreSet(**fields)(at["spare"])
    broken = at["spare"].with_(features=np.full((397, 64), np.nan, np.float32))
    with pytest.raises(ValueError, match="not finite for 397 of 397"):
        PCoreSet(model=at["model"])(broken)


def measure(seed: int, arm: str) -> float:
    """Test accuracy of a student with 60 labels, 20 at random and 4 rounds of 10, taught by a better network."""
    run, rows = Run(seed), data("digits/train")
    order = run.numpy("claim").permutation(np.arange(400, 1000))  # the teacher was trained on the first 400
    with run.global_rng("net"):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    picker = PCoreSet() if arm == "method" else RandomRows()
    taught = {"inner": (KD(teacher=_teacher(), alpha=0.5, temperature=2.0),), "steps": 60, "lr": 3e-3}
    loop = ActiveLearning(pool=rows.take(order[20:]), acquire=picker, rounds=4, **taught)
    return Accuracy()(run, loop(run, Model(net), rows.take(order[:20])), data("digits/test")).value


CLAIM = Claim(
    method="pcoreset",
    world="digits",
    rival="as many random rows",
    quantity="test accuracy with a teacher and 60 labels, 40 of them asked for",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
