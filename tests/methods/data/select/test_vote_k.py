from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.data.select.vote_k import VoteK, vote_k
from trainlore.nouns import Data
from trainlore.primitives.neighbours import nearest
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def textbook(neighbours, picks, rho):
    """The published greedy rule, every score summed anew at every step."""
    n, chosen = len(neighbours), []
    voters = [[v for v in range(n) if u in neighbours[v]] for u in range(n)]
    while len(chosen) < picks:
        score = {}
        for u in set(range(n)) - set(chosen):
            score[u] = sum(rho ** -sum(int(c in neighbours[v]) for c in chosen) for v in voters[u] if v not in chosen)
        chosen.append(max(score, key=lambda u: (round(score[u], 9), len(voters[u]), -u)))
    return chosen


@pytest.mark.parametrize(("k", "rho", "picks"), [(3, 10.0, 12), (8, 10.0, 20), (5, 2.0, 40)])
def test_choices_are_the_textbooks(k, rho, picks):
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(k))
    near = nearest(x, k)[1].numpy()
    assert vote_k(near, picks, rho).tolist() == textbook(near.tolist(), picks, rho)


def test_one_from_each_crowd_before_a_second_from_any():
    crowd = np.repeat(np.arange(5), 20)
    rng = np.random.default_rng(0)
    x = np.eye(5, 8, dtype=np.float32)[crowd] + 0.05 * rng.normal(size=(100, 8)).astype(np.float32)
    out = VoteK(picks=5, k=15)(Data.of({"features": x}))
    assert sorted(crowd[out.ids].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(out["vote_k"].tolist()) == [0, 1, 2, 3, 4]


def test_confidence_spreads_the_choice_and_leaves_out_the_surest():
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(1))
    near, sure = nearest(x, 10)[1].numpy(), np.random.default_rng(0).permutation(200) / 200
    chosen = vote_k(near, 20, confidence=sure)
    assert chosen[:2].tolist() == vote_k(near, 2).tolist() and len(set(chosen.tolist())) == 20
    assert (np.diff(sure[chosen[2:]]) > 0).all() and sure[chosen[2:]].max() < 0.92
    assert np.histogram(sure[chosen[2:]], 3, (0, 0.9))[0].tolist() == [6, 6, 6]


def test_all_rows_one_row_and_bad_fields():
    data = Data.of({"features": np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)})
    assert len(VoteK(picks=7)(data)) == 7
    assert len(VoteK(picks=1)(data.take([3]))) == 1
    for bad, said in (
        ({"picks": 0}, "picks=0"),
        ({"picks": 8}, "picks=8"),
        ({"picks": 2, "rho": 1.0}, "rho=1.0"),
        ({"picks": 2, "k": 0}, "k=0"),
    ):
        with pytest.raises(ValueError, match=said):
            VoteK(**bad)(data)


def measure(seed: int, arm: str) -> float:
    """Accuracy of the nearest of 20 annotated rows, as demonstrations are found, on a pool drawn by the seed."""
    nouns, run = world("digits"), Run(seed)
    pool = nouns["data"].take(run.numpy("pool").permutation(len(nouns["data"]))[:200])
    chosen = VoteK(picks=20, k=10)(run, pool) if arm == "method" else RandomRows(keep=0.1)(run, pool)
    found = nearest(torch.tensor(nouns["test"]["features"]), 1, torch.tensor(chosen["features"]))[1][:, 0].numpy()
    return float((chosen["label"][found] == nouns["test"]["label"]).mean())


CLAIM = Claim(
    method="vote_k",
    world="digits",
    rival="random_rows",
    quantity="accuracy of the nearest annotated row",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
