from __future__ import annotations

import math

import numpy as np
import torch

from trainlore.primitives.codewords import Mixture, candidates, clusters, openness


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_candidates_against_a_loop():
    rows, book = rand(7, 3), rand(5, 3, seed=1)
    near, logits = candidates(rows, book, 3)
    for i, row in enumerate(rows):
        far = [math.dist(row.tolist(), word.tolist()) for word in book]
        best = sorted(range(5), key=far.__getitem__)[:3]
        assert near[i].tolist() == best
        share = torch.tensor([1 / (far[j] + 1e-5) for j in best])
        torch.testing.assert_close(logits[i].softmax(0), share / share.sum())  # shares go as 1 / distance
        assert logits[i, -1] == 0
    assert candidates(book, torch.stack([book[0], book[0]]), 2)[1].isfinite().all()  # twice the same codeword


def test_openness_counts_open_choices_alone():
    shares = torch.tensor([[0.5, 0.5], [0.9, 0.1], [1.0, 0.0]])
    torch.testing.assert_close(openness(shares), torch.tensor(2 * (0.25 + 0.09) / 2))
    assert openness(shares[2:]) == 0


def test_a_weight_is_mixed_and_its_choices_are_made():
    layer = torch.nn.Linear(7, 3)  # a run of 4 and one of 3, filled up
    mixed = Mixture(layer, rand(6, 4), 4, 2)
    with torch.no_grad():
        mixed.logits.copy_(5 * rand(*mixed.logits.shape, seed=2))
    got, shares = mixed(layer.weight), mixed.logits.softmax(1)
    for i in range(3):
        for j in range(7):
            run, at = 2 * i + j // 4, j % 4
            want = sum(shares[run, c] * mixed.book[mixed.near[run, c], at] for c in range(2))
            torch.testing.assert_close(got[i, j], want)
    sure = shares.max(1).values > 0.99
    assert 0 < int(sure.sum()) < len(sure)
    mixed.freeze(0.99)
    after = mixed.logits.softmax(1)
    assert ((after.max(1).values == 1) == sure).all() and torch.equal(after[~sure], shares[~sure])
    mixed(layer.weight).square().sum().backward()
    assert (mixed.logits.grad[sure] == 0).all() and (mixed.logits.grad[~sure] != 0).all()
    mixed.freeze(0.0)
    hard = mixed.book[mixed.codes().long()].flatten(1)[:, :7]
    torch.testing.assert_close(mixed(layer.weight), hard)


def test_clusters_are_a_quarter_of_the_runs_at_most():
    weight = rand(16, 8)  # 32 runs of 4
    book = clusters(weight, 4, 256, np.random.default_rng(0))
    assert book.shape == (8, 4) and clusters(weight, 4, 4, np.random.default_rng(0)).shape == (4, 4)
    near = torch.cdist(weight.view(-1, 4), book).argmin(1)
    for i, word in enumerate(book):  # each is the mean of the runs that are nearest to it
        torch.testing.assert_close(weight.view(-1, 4)[near == i].mean(0), word, atol=1e-4, rtol=1e-4)
