from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.lead import LEAD, informed, lead_loss
from trainlore.nouns import Data
from trainlore.primitives.ranking import margins
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world
from trainlore.worlds.two_domains import pairs


def test_losses_are_those_of_a_plain_loop():
    g = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(n, 3, 6, dtype=torch.float64, generator=g) for n in (3, 5))
    mine, theirs = [0, 1], [1, 3]
    hard, response, features = lead_loss(student, teacher, mine, theirs, 2.0, 10.0)
    right = [np.mean([teacher[t, b].log_softmax(0)[b].item() for b in range(3)]) for t in theirs]
    weight = np.exp(np.array(right) / 10) / np.exp(np.array(right) / 10).sum()

    def divergence(t, s):
        p, q = (t / 2.0).softmax(0), s.softmax(0)
        return sum(float(a) * (float(a.log()) - float(b.log())) for a, b in zip(p, q, strict=True))

    for b in range(3):
        assert hard[b].item() == pytest.approx(-student[2, b].log_softmax(0)[b].item(), rel=1e-5)
        assert response[b].item() == pytest.approx(divergence(teacher[4, b], student[2, b]), rel=1e-5)
        want = sum(w * divergence(teacher[t, b], student[s, b]) for w, s, t in zip(weight, mine, theirs, strict=True))
        assert features[b].item() == pytest.approx(want, rel=1e-5)


def test_layers_that_find_the_right_text_weigh_more():
    scores = torch.stack([torch.eye(3) * k for k in (0.0, 2.0, 5.0)])
    weight = informed(scores, 1.0)
    assert weight[0] < weight[1] < weight[2] and weight.sum() == pytest.approx(1)
    assert informed(scores, 1e6).tolist() == pytest.approx([1 / 3] * 3, rel=1e-4)


def test_layers_are_drawn_in_order_below_the_last_and_stay_for_some_steps():
    part, seen = LEAD(teacher=llama(), layers=3, every=5), set()
    for t in range(100):
        loop = SimpleNamespace(t=t, rng=lambda *key: Run(0).rng(*key))
        mine, theirs = part._drawn(loop, 5, 9)
        assert len(mine) == len(theirs) == 3 and mine == sorted(set(mine)) and theirs == sorted(set(theirs))
        assert max(mine) < 4 and max(theirs) < 8
        seen.add((t // 5, *mine, *theirs))
    assert len(seen) == 20
    assert LEAD(teacher=llama(), layers=9)._drawn(loop, 3, 9)[0] == [0, 1]


def test_teacher_and_student_may_differ_in_width_and_depth():
    run, nouns = Run(0), world("pairs")
    run.fit(nouns["model"], nouns["data"], LEAD(teacher=llama(3, width=48, layers=4)), steps=2, **HOW["pairs"])
    assert not run.effects[-1]["dead"]
    with pytest.raises(ValueError, match="below the last"):
        Run(0).fit(nouns["model"], nouns["data"], LEAD(teacher=llama(layers=1)), steps=1, **HOW["pairs"])
    with pytest.raises(ValueError, match="layers"):
        Run(0).fit(nouns["model"], nouns["data"], LEAD(teacher=llama(), layers=0), steps=1, **HOW["pairs"])
    with pytest.raises(ValueError, match="micro_batch"):
        Run(0).fit(nouns["model"], nouns["data"], LEAD(teacher=llama()), steps=1, micro_batch=4, **HOW["pairs"])


@cache
def teacher():
    """A wider ranker that saw ten times the pairs."""
    alone = LEAD(teacher=llama(), response=0.0, features=0.0)
    return Run(41).fit(llama(41, width=64, layers=3), Data(pairs(400, seed=5)), alone, steps=60, **HOW["pairs"])


def measure(seed, arm):
    """Share of unseen pairs whose chosen text a student ranks first; it sees 40 pairs."""
    weight = {} if arm == "method" else {"response": 0.0, "features": 0.0}
    part, told = LEAD(teacher=teacher(), **weight), Data(pairs(40, seed=100_000 + seed))
    student = Run(seed).fit(llama(seed, layers=3), told, part, steps=30, **HOW["pairs"])
    test = Data(pairs(100, seed=200_000 + seed))
    return float((margins(Run(seed), (student,), test) > 0).float().mean())


CLAIM = Claim("lead", "pairs", "contrastive loss alone", "share of pairs ordered", "higher", measure, quick=2)
