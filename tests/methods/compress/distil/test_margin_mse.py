import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainlore.claims import Claim
from trainlore.methods.compress.distil.margin_mse import MarginMSE, margin_mse
from trainlore.methods.compress.distil.teacher_margins import TeacherMargins
from trainlore.nouns import Data
from trainlore.primitives.ranking import margins
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, llama, world
from trainlore.worlds.two_domains import WORDS

HOW_ = {**HOW["pairs"], "lr": 3e-3, "batch_size": 12}


def test_margins_are_matched_and_not_scores():
    scores, margin = torch.tensor([[3.0, 1.0], [0.0, 4.0]]), torch.tensor([0.5, -1.0])
    assert margin_mse(scores, margin).tolist() == [(2 - 0.5) ** 2, (-4 + 1) ** 2]
    torch.testing.assert_close(margin_mse(scores + 7, margin), margin_mse(scores, margin))


def test_teachers_asked_at_the_start_or_beforehand_teach_the_same():
    nouns = world("pairs")
    teachers = (nouns["reference"], llama(5))
    kept = TeacherMargins(teachers=teachers)(nouns["data"])
    by_hand = sum(margins(Run(0), (t,), nouns["data"]) for t in teachers) / 2
    torch.testing.assert_close(torch.tensor(kept["margin"]), by_hand)
    live = Run(0).fit(world("pairs")["model"], nouns["data"], MarginMSE(teachers=teachers), steps=3, **HOW["pairs"])
    told = Run(0).fit(world("pairs")["model"], kept, MarginMSE(), steps=3, **HOW["pairs"])
    assert live.fingerprint == told.fingerprint != world("pairs")["model"].fingerprint


def test_a_student_reaches_the_margins_it_is_told():
    data = triples(8, 0)
    data = data.with_(margin=np.linspace(-3, 3, 8).astype(np.float32))
    student = Run(0).fit(llama(), data, MarginMSE(), steps=60, **{**HOW_, "batch_size": 8})
    torch.testing.assert_close(margins(Run(0), (student,), data), torch.tensor(data["margin"]), atol=0.3, rtol=0)


def test_bad_input_is_named():
    nouns = world("pairs")
    for data, match in (
        (nouns["data"], "teacher_margins"),
        (nouns["data"].with_(margin=["a"] * 120), "finite"),
        (nouns["data"].with_(margin=np.full(120, np.nan)), "finite"),
        (nouns["data"].without("prompt"), "prompt"),
    ):
        with pytest.raises((ValueError, TypeError), match=match):
            Run(0).fit(nouns["model"], data, MarginMSE(), steps=1, **HOW["pairs"])


def triples(n, seed):
    """Queries of four words and two texts of ten with some of them; `chosen` has more, but in a fifth of the rows."""
    rng, made = np.random.default_rng(seed), {"prompt": [], "chosen": [], "rejected": [], "margin": []}
    for _ in range(n):
        words = rng.permutation(len(WORDS))
        more, less = np.sort(rng.choice(5, 2, replace=False))[::-1]
        shared = (less, more) if rng.random() < 0.2 else (more, less)
        texts = [rng.permutation(np.r_[words[:k], rng.choice(words[4:], 10 - k)]) for k in shared]
        for name, which in zip(made, (words[:4], *texts), strict=False):
            made[name].append(" ".join(WORDS[w] for w in which))
        made["margin"].append(float(shared[0] - shared[1]))
    return Data.of(made)


class Labels(Part):
    """The rival: the pairwise log loss on which text is the chosen one."""

    forward = MarginMSE.forward

    def loss(self, loop, s, batch, out):
        return F.softplus(out[:, 1] - out[:, 0])


def measure(seed, arm):
    """Share of unseen pairs that a student orders by the words they share; a fifth of the labels it sees is wrong."""
    part = MarginMSE() if arm == "method" else Labels()
    student = Run(seed).fit(llama(seed), triples(150, seed), part, steps=30, **HOW_)
    test = triples(120, 10_000 + seed)
    got = margins(Run(seed), (student,), test).numpy()
    return float((np.sign(got) == np.sign(test["margin"])).mean())


CLAIM = Claim("margin_mse", "rankings", "labels alone", "share of pairs ordered", "higher", measure)
