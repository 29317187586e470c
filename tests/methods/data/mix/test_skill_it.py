"""Skill-It: the mixture's formula, the graph, and the rounds."""

import math
from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.skill_it import SkillIt, edges, learn_graph, mixture
from trainlore.methods.data.mix.uniform_mixture import UniformMixture
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import sums
from trainlore.worlds.tiny import HOW, world


def test_the_mixture_is_the_textbook_s():
    graph, losses = np.random.default_rng(0).random((3, 2)), np.random.default_rng(1).random((4, 2))
    raw = [math.exp(0.5 * sum(graph[i, j] * losses[w, j] for w in range(4) for j in range(2))) for i in range(3)]
    assert mixture(torch.tensor(graph), torch.tensor(losses), 0.5).tolist() == pytest.approx(
        [r / sum(raw) for r in raw]
    )


def test_the_authors_first_mixture_on_lego():
    """Their LEGO graph, edges off the diagonal at a half, eta 0.5, no loss seen yet: weights exp(0.5 * row sum)."""
    lego = torch.eye(5)
    lego[1, 0] = lego[1, 2] = lego[1, 3] = lego[2, 2] = 0.5
    lego[2, 2] = 1.0
    raw = [math.exp(0.5 * float(row.sum())) for row in lego]
    assert mixture(lego, torch.ones(1, 5), 0.5).tolist() == pytest.approx([r / sum(raw) for r in raw])


def test_edges_are_relative_drops_and_never_negative():
    made = edges(torch.tensor([2.0, 4.0]), torch.tensor([[1.0, 5.0], [2.0, 3.0]]))
    assert made.tolist() == [[0.5, 0.0], [0.0, 0.25]]


def test_a_learned_graph_knows_who_teaches_whom():
    nouns = world("text")
    graph = learn_graph(Run(0), nouns["model"], nouns["data"], nouns["held_out"], steps=20, **HOW["text"])
    assert np.shape(graph) == (2, 2) and graph[0][0] > graph[1][0] and graph[1][1] > graph[0][1]


@pytest.mark.parametrize(
    "fields",
    [{"graph": ((1.0,),)}, {"target": ("c",)}, {"every": 0}, {"by": "nothing"}, {"held_out": world("text")["target"]}],
)
def test_bad_fields_are_named(fields):
    nouns = world("text")
    with pytest.raises(ValueError, match=next(iter(fields)) if "by" not in fields else "nothing"):
        Run(0).fit(
            nouns["model"], nouns["data"], SkillIt(**{"held_out": nouns["held_out"], **fields}), steps=1, **HOW["text"]
        )


class Fake:
    """As much of a loop as the part looks at."""

    def __init__(self, nouns):
        self.data, self.model, self.run, self.t, self.size = nouns["data"], nouns["model"], Run(0), 0, 8


@pytest.mark.parametrize(("target", "window"), [((), 2), (("b",), 2)])
def test_rounds_sum_the_window_or_average_it_for_a_target(target, window):
    nouns = world("text")
    graph = ((1.0, 0.4), (0.2, 1.0))
    loop, part = (
        Fake(nouns),
        SkillIt(held_out=nouns["held_out"], graph=graph, eta=0.3, every=5, window=window, target=target),
    )
    s, b = part.start(loop), torch.tensor([d == "b" for d in nouns["data"]["domain"].to_pylist()])
    domain = np.asarray(nouns["held_out"]["domain"])
    losses = (
        loop.run.infer(loop.model, nouns["held_out"], lambda x, o: per_row(rowwise("causal", x, o), x, "causal"))
        .double()
        .numpy()
    )
    loss = [losses[domain == d].mean() for d in "ab"]
    for round_ in range(4):
        loop.t = 5 * round_
        times = 1 if target else min(window, round_)  # the model stands still, so every round's loss is the same
        seen = [1.0, 1.0] if round_ == 0 else [times * x for x in loss]
        raw = [math.exp(0.3 * sum(graph[i][j] * seen[j] for j in range(2) if not target or j == 1)) for i in range(2)]
        odds = part.odds(loop, s)
        assert float(odds[b].sum() / odds.sum()) == pytest.approx(raw[1] / sum(raw), rel=1e-6)


@cache
def problems(n, seed):
    """Sums of one, two and three digits, n each, the number of digits as their skill."""
    tables = [sums.make(n, seed=seed + k, digits=k).to_pydict() for k in (1, 2, 3)]
    rows = {c: [x for t in tables for x in t[c]] for c in ("prompt", "completion")}
    return world("sums")["model"].encode(Data.of({**rows, "domain": [k for k in "123" for _ in range(n)]}))


def measure(seed: int, arm: str) -> float:
    """The mean over skills of the held-out loss; fewer digits teach more digits half as well as these themselves."""
    model, run, held_out = world("sums", seed)["model"], Run(seed), problems(40, 200)
    graph = ((1.0, 0.5, 0.5), (0.0, 1.0, 0.5), (0.0, 0.0, 1.0))
    part = SkillIt(held_out=held_out, graph=graph, every=12) if arm == "method" else UniformMixture()
    run.fit(model, problems(300, 100), part, steps=60, **HOW["sums"])
    losses = run.infer(model, held_out, lambda b, out: per_row(rowwise("causal", b, out), b, "causal"))
    return float(losses.mean())


CLAIM = Claim(
    method="skill_it",
    world="sums",
    rival="uniform_mixture",
    quantity="mean over skills of the held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
