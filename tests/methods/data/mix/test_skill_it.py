"""Skill-It: the mixture's formula, the graph, and the rounds."""

import math

import numpy as np
import pytest
import torch

from trainlore.methods.data.mix.skill_it import edges, learn_graph, mixture
from trainlore.runs import Run
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
