"""Flows: the log determinant, what a coupling moves, disagreement, and draws."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.primitives.flows import Coupling, Flow, disagreement, drawn_labels


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_log_determinant_is_that_of_the_jacobian(classes):
    torch.manual_seed(0)
    flow = Flow(4, classes, 8, 2).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.4)
    x, z = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, classes, dtype=torch.float64)
    out = flow(x, z)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v, i=i: flow(x[i : i + 1], v[None])[0, :-1], z[i])
        assert out[i, -1].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), rel=1e-5)


def test_a_coupling_moves_its_entries_alone_and_little():
    torch.manual_seed(0)
    part, y = Coupling(2, torch.tensor([True, False, True]), 8), torch.randn(5, 3)
    out, log_det = part(torch.randn(5, 2), y)
    assert torch.equal(out[:, 1], y[:, 1]) and (out[:, 0] != y[:, 0]).all()
    assert (log_det.abs() <= 1).all()  # two entries, each by at most e to the 1/2


def test_disagreement_is_the_error_rate_of_a_function_on_a_class():
    votes, truth = np.array([[0, 1], [1, -1], [2, 2], [0, -1]]), np.array([0, 0, 2, 1])
    y = torch.nn.functional.one_hot(torch.tensor(truth), 3).double()
    got = disagreement(y, torch.tensor(votes))
    for f in range(2):
        rows = [i for i in range(4) if votes[i, f] >= 0]
        for k in range(3):
            wrong = sum((votes[i, f] == k) != (truth[i] == k) for i in rows)
            assert got[f, k].item() == pytest.approx(wrong / len(rows))
    soft = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    s = torch.nn.functional.one_hot(torch.tensor(votes).clamp(min=0), 3).double()
    gap = soft[:, None] * (1 - s) + (1 - soft[:, None]) * s
    voted = torch.tensor(votes >= 0)[..., None]
    assert torch.allclose(disagreement(soft, torch.tensor(votes)), (gap * voted).sum(0) / voted.sum(0))
    assert (disagreement(soft, torch.full((4, 2), -1)) == 0).all()


def test_draws_are_cut_and_do_not_depend_on_the_size_of_a_pass():
    torch.manual_seed(0)
    flow, x = Flow(2, 3, 4, 1), torch.randn(7, 2)
    one, other = (drawn_labels(flow, x, 3, 4, size, torch.Generator().manual_seed(5)) for size in (2, 100))
    assert torch.allclose(one, other, atol=1e-6)
    rng, total = torch.Generator().manual_seed(5), 0
    for _ in range(4):
        total = total + flow(x, torch.randn(7, 3, generator=rng))[:, :3].clamp(0, 1)
    assert torch.allclose(one, total, atol=1e-6) and not one.requires_grad
