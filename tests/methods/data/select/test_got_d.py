from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from trainlore.claims import Claim
from trainlore.methods.data.select.got_d import GOTD, gains
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import HOW, world


def distance(x, y, a):
    """Transport cost from weighted x to uniform y by a linear program."""
    cost = torch.cdist(x, y).numpy()
    n, m = cost.shape
    sides = np.vstack([np.kron(np.eye(n), np.ones(m)), np.kron(np.ones(n), np.eye(m))])
    return linprog(cost.ravel(), A_eq=sides, b_eq=np.concatenate([a, np.full(m, 1 / m)])).fun


def test_gains_are_how_the_true_distance_falls_with_mass_on_a_row():
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 2, dtype=torch.float64, generator=rng) + s for n, s in ((7, 0), (9, 1)))
    got, step, n = gains(x, x, y, epsilon=1e-3, iterations=20_000), 1e-4, 7
    for i in range(n):
        a = np.full(n, (1 - 1 / n - step) / (n - 1))
        a[i] = 1 / n + step
        # per unit of mass put on row i and taken from the others alike
        assert (distance(x, y, np.full(n, 1 / n)) - distance(x, y, a)) / step == pytest.approx(got[i].item(), abs=0.02)


def test_a_row_wins_where_the_source_is_thin_and_not_where_it_is_dense():
    """Two places in the target; the source has plenty at one of them."""
    target = torch.tensor([[0.0, 0.0], [5.0, 0.0]]).repeat(20, 1)
    source = torch.cat([torch.zeros(30, 2), torch.tensor([[5.0, 0.0]]).repeat(2, 1)])
    there, here, nowhere = gains(torch.tensor([[5.0, 0.0], [0.0, 0.0], [0.0, 9.0]]), source, target, epsilon=0.05)
    assert there > here > nowhere and there > 0


def test_the_best_rows_stay_in_order_with_their_gain_and_the_source_counts():
    at = world("text")
    pick = {"encoder": at["prior"], "target": at["target"], "keep": 0.2}
    out = GOTD(**pick)(Run(0), at["data"])
    every = GOTD(**{**pick, "keep": 1.0})(Run(0), at["data"])["got_d"]
    assert out.ids.tolist() == sorted(np.argsort(-every, kind="stable")[:60].tolist())
    assert float(every.mean()) == pytest.approx(0.0, abs=1e-4)
    fed = GOTD(**pick, source=at["target"])(Run(0), at["data"])
    assert out.ids.tolist() != fed.ids.tolist()
    few = GOTD(**{**pick, "tokens": 500.0})(Run(0), at["data"])
    assert 450 < sum(map(len, few["input_ids"].to_pylist())) <= 500


def test_bad_input_is_named():
    at = world("text")
    for fields, name in (
        ({"epsilon": 0.0}, "epsilon=0"),
        ({"iterations": 0}, "iterations=0"),
        ({"keep": 2.0}, "keep=2"),
        ({"target": at["target"].take([])}, "target was given no rows"),
    ):
        with pytest.raises(ValueError, match=name):
            GOTD(**{"encoder": at["prior"], "target": at["target"], **fields})(at["data"].take(range(20)))


def measure(seed: int, arm: str) -> float:
    """Loss on a domain after a short training on a tenth of the rows, most of which are of another."""
    at = world("text")
    model, encode = at["prior"], at["prior"].encode
    pool = encode(Data(two_domains.make(300, seed=100 + seed, domains=("a", "a", "b"))))
    target, test = (encode(Data(two_domains.make(60, seed=s, domains=("b",)))) for s in (200 + seed, 7))
    if arm == "method":
        kept = GOTD(encoder=model.copy(), target=target, keep=0.1)(Run(seed), pool)
    else:
        kept = pool.take(Run(seed).numpy("rival").permutation(len(pool))[:30])
    run = Run(seed)
    tuned = run.fit(model, kept, steps=12, **HOW["text"])
    from trainlore.primitives.statistics import outcomes

    losses, tokens = outcomes(run, tuned, test, "loss")
    return float(np.average(losses, weights=tokens))


CLAIM = Claim(
    method="got_d",
    world="text",
    rival="as many random rows",
    quantity="loss on the target's domain after a short training on a tenth of the rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
