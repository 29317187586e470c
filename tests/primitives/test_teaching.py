import math

import pytest
import torch
import torch.nn.functional as F

from trainlore.primitives.teaching import (
    draws,
    kl,
    soft_cross_entropy,
    sparse_cross_entropy,
    top_k,
    uniforms,
    where_trained,
)


def logits(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_is_the_textbooks_sum(temperature):
    student, teacher = logits(2, 3, 5), logits(2, 3, 5, seed=1)
    got = kl(student, teacher, temperature)
    assert got.dtype == torch.float64
    for i in range(2):
        for j in range(3):
            p = [math.exp(x / temperature) for x in teacher[i, j].tolist()]
            q = [math.exp(x / temperature) for x in student[i, j].tolist()]
            p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
            assert got[i, j].item() == pytest.approx(
                sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)), abs=1e-12
            )
    assert kl(teacher, teacher).abs().max() < 1e-12


def test_soft_cross_entropy_is_torchs_own():
    student, shares = logits(4, 6), logits(4, 6, seed=1).softmax(-1)
    torch.testing.assert_close(soft_cross_entropy(student, shares), F.cross_entropy(student, shares, reduction="none"))


def test_draws_are_an_unbiased_sketch_of_the_teacher():
    teacher = logits(8)
    ids = draws(teacher.expand(4000, 8), torch.rand(4000, 25, generator=torch.Generator().manual_seed(0)))
    assert ids.shape == (4000, 25) and ids.dtype == torch.int64
    share = F.one_hot(ids, 8).double().mean(1)
    assert ((share.mean(0) - teacher.softmax(-1)).abs() < 4 * share.std(0) / 4000**0.5).all()
    spread = teacher.softmax(-1) * (1 - teacher.softmax(-1)) / 25  # the multinomial's own variance
    torch.testing.assert_close(share.var(0), spread, rtol=0.1, atol=0)


def test_top_k_keeps_the_head_and_loses_the_rest():
    teacher = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    ids, weights = top_k(teacher, 2)
    assert ids.tolist() == [0, 1] and weights.tolist() == pytest.approx([0.5, 0.3])
    assert top_k(teacher, 2, renormalize=True)[1].tolist() == pytest.approx([0.625, 0.375])
    assert top_k(teacher, 9)[1].sum() == pytest.approx(1.0)


def test_the_gradient_of_draws_is_unbiased_and_that_of_top_k_is_not():
    """The gradient at the student's logits is p - t in full and (sum of kept t) p - t when only the head is kept."""
    student, teacher = logits(6).requires_grad_(), logits(6, seed=1)
    p, t = student.detach().softmax(-1), teacher.softmax(-1)
    ids = draws(teacher.expand(20000, 6), torch.rand(20000, 12, generator=torch.Generator().manual_seed(0)))
    (mean,) = torch.autograd.grad(sparse_cross_entropy(student.expand(20000, 6), ids).mean(), student)
    torch.testing.assert_close(mean, p - t, atol=3e-3, rtol=0)
    ids, weights = top_k(teacher, 2)
    (head,) = torch.autograd.grad(sparse_cross_entropy(student, ids, weights), student)
    kept = torch.zeros(6, dtype=torch.float64).scatter(0, ids, weights)
    torch.testing.assert_close(head, kept.sum() * p - kept)
    assert (head - (p - t)).abs().max() > 0.05


def test_everything_drawn_equals_full_distillation():
    student, teacher = logits(3, 5), logits(3, 5, seed=2)
    ids, weights = top_k(teacher, 5)
    torch.testing.assert_close(
        sparse_cross_entropy(student, ids, weights), soft_cross_entropy(student, teacher.softmax(-1))
    )


def test_where_trained_has_the_shape_of_the_losses():
    labels = torch.tensor([[-100, 4, 5, -100]])
    assert where_trained("causal", {"labels": labels}, torch.ones(1, 3)).tolist() == [[1, 1, 0]]
    assert where_trained("masked", {"labels": labels}, torch.ones(1, 4)).tolist() == [[0, 1, 1, 0]]
    assert where_trained("classifier", {"labels": torch.tensor([1])}, torch.ones(1)).tolist() == [1]


def test_named_uniforms_are_uniform_and_named():
    u = uniforms(12345, torch.arange(200), 10, 20)
    assert u.shape == (200, 10, 20) and (u >= 0).all() and (u < 1).all() and len(u.unique()) > 39_800
    assert u.mean() == pytest.approx(0.5, abs=0.005) and u.var() == pytest.approx(1 / 12, abs=0.002)
    counts = torch.histc(u, 64, 0, 1)
    assert ((counts - 625) ** 2 / 625).sum() < 120  # chi square, 63 degrees: p of 1e-5
    flat = u.flatten()
    assert abs(torch.corrcoef(torch.stack([flat[1:], flat[:-1]]))[0, 1]) < 0.02
    assert abs(torch.corrcoef(torch.stack([u[1:].flatten(), u[:-1].flatten()]))[0, 1]) < 0.02
    assert torch.equal(u[[7, 3]], uniforms(12345, torch.tensor([7, 3]), 10, 20))
    assert (u != uniforms(12346, torch.arange(200), 10, 20)).float().mean() > 0.99
