from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainlore.primitives import noise


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


IDS = torch.tensor([[5, 6, 7, 5, 0, 0], [9, 9, 9, 9, 9, 9], [3, 0, 0, 0, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6, [1, 0, 0, 0, 0, 0]])


def test_numbers_are_moved_or_zeroed_by_the_named_stream():
    x = torch.ones(400, 50)
    moved = noise.gaussian(x, 0.3, rng()) - x
    assert abs(moved.mean()) < 0.01 and moved.std().item() == pytest.approx(0.3, rel=0.02)
    zeroed = noise.dropout(x, 0.3, rng())
    assert set(zeroed.unique().tolist()) == {0.0, 1.0} and (zeroed == 0).float().mean().item() == pytest.approx(
        0.3, abs=0.01
    )
    assert torch.equal(noise.gaussian(x, 0.3, rng(4)), noise.gaussian(x, 0.3, rng(4)))
    assert not torch.equal(noise.gaussian(x, 0.3, rng(4)), noise.gaussian(x, 0.3, rng(5)))


def test_only_real_tokens_are_replaced():
    many, mask = IDS.repeat(500, 1), MASK.repeat(500, 1)
    got = noise.replace(many, mask, 0.5, 1000, rng())
    changed = (got != many) & (mask == 1)
    assert torch.equal(got[mask == 0], many[mask == 0])
    assert changed[mask == 1].float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert torch.equal(noise.replace(many, mask, 0.0, 1000, rng()), many)


def test_dropping_closes_gaps_keeps_order_and_a_token():
    ids = torch.arange(1, 9).repeat(300, 1)
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    got, real = noise.drop(ids * mask, mask, 0.4, rng(), pad=-7)
    for row, kept in zip(got.tolist(), real.tolist(), strict=True):
        n = sum(kept)
        assert n >= 1 and kept == [1] * n + [0] * (8 - n)
        assert row[:n] == sorted(row[:n]) and set(row[:n]) <= set(range(1, 7)) and set(row[n:]) <= {-7}
    assert real.sum().item() / mask.sum().item() == pytest.approx(0.6, abs=0.03)
    ids, real = noise.drop(IDS, MASK, 1.0, rng())
    assert real.sum(1).tolist() == [1, 1, 1]


def test_tfidf_is_the_textbook():
    rows = [[0, 1, 1, 2], [0, 3], [0, 1]]
    values, offsets = np.concatenate(rows), np.cumsum([0] + [len(r) for r in rows])
    idf, odds = noise.tfidf(values, offsets, 5)
    wanted = [math.log(3 / sum(w in r for r in rows)) if any(w in r for r in rows) else 0.0 for w in range(5)]
    assert idf == pytest.approx(wanted)
    told = [sum(r.count(w) / len(r) * wanted[w] for r in rows) for w in range(5)]
    left = [max(told) - told[w] if any(w in r for r in rows) else 0.0 for w in range(5)]
    assert odds == pytest.approx([v / sum(left) for v in left]) and odds.sum() == pytest.approx(1)


def test_tfidf_spares_what_tells_and_replaces_the_share():
    idf = torch.tensor([0.0, 0.1, 2.0, 1.0])
    ids, mask = torch.tensor([[0, 1, 2, 1, 0], [3, 3, 3, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]])
    got = noise.tfidf_shares(ids, mask, idf, 0.25)
    score = [1 / 4 * 0.0, 2 / 4 * 0.1, 1 / 4 * 2.0, 2 / 4 * 0.1]  # count / length * idf
    gap = [max(score) - s for s in score]
    assert got[0, :4].tolist() == pytest.approx([0.25 * 4 * g / sum(gap) for g in gap])
    assert got[0, 2] == 0 and got[0, 4] == 0 and got[1].tolist() == pytest.approx([0.25] * 3 + [0, 0])
    many = noise.tfidf_replace(
        ids.repeat(800, 1), mask.repeat(800, 1), idf, torch.tensor([0.0, 0.0, 0.0, 1.0]), 0.25, rng()
    )
    first = many[0::2]
    assert (first[:, 2] == 2).all() and (first[:, 4] == 0).all()
    assert (first[:, :4] == 3).float().mean().item() == pytest.approx(0.25, abs=0.02)
