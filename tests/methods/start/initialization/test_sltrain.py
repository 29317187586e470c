from __future__ import annotations

import math

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.start.initialization.sltrain import SLTrain, sparse_low_rank, support
from trainlore.primitives import losses
from trainlore.primitives.reparam import Written
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_weight_against_a_loop():
    b, a, values = rand(5, 2), rand(2, 7, seed=1), rand(4, seed=2)
    where = torch.tensor([0, 6, 20, 34])
    expected = torch.zeros(5, 7, dtype=torch.float64)
    for i in range(5):
        for j in range(7):
            expected[i, j] = 0.25 * sum(b[i, k] * a[k, j] for k in range(2))
            expected[i, j] += sum(values[n] for n in range(4) if where[n] == 7 * i + j)
    torch.testing.assert_close(sparse_low_rank(b, a, values, where, 0.25), expected)


def test_the_support_is_as_large_as_the_authors_and_uniform():
    rng = torch.Generator().manual_seed(0)
    where = support(1000, 0.0305, rng)
    assert len(where) == 30 == len(where.unique()) and torch.equal(where, where.sort().values)
    often = torch.bincount(torch.cat([support(10, 0.3, rng) for _ in range(4000)]), minlength=10) / 4000
    torch.testing.assert_close(often, torch.full((10,), 0.3), rtol=0, atol=0.04)
    assert len(support(10, 0.0, rng)) == 0


def test_gradients_are_those_of_the_dense_product():
    model = SLTrain(rank=3, alpha=6.0)(Run(0), world("text")["model"])
    layer = next(m for m in model.net.modules() if isinstance(m, Written)).double()
    layer.make.b.data = rand(*layer.make.b.shape)
    x = rand(4, layer.make.a.shape[1], seed=3).requires_grad_()
    weights = [x, *layer.make.parameters()]
    ours = torch.autograd.grad((layer(x) ** 3).sum(), weights)
    theirs = torch.autograd.grad(((x @ layer.make().T) ** 3).sum(), weights)
    for mine, textbook in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, textbook)


def test_what_is_trained_and_how_it_starts():
    model = SLTrain(rank=4, density=0.1, alpha=8.0)(Run(0), world("text")["model"])
    layers = [m for m in model.net.modules() if isinstance(m, Written)]
    assert len(layers) == 14
    for m in layers:
        rows, cols = m.weight.shape
        assert sum(p.numel() for p in m.parameters()) == 4 * (rows + cols) + int(0.1 * rows * cols)
        assert not m.make.b.any() and m.make.scale == 2.0
        for p in (m.make.a, m.make.values):  # uniform in +-1/sqrt(in)
            assert p.abs().max() <= 1 / math.sqrt(cols) and p.std().item() == pytest.approx(
                1 / math.sqrt(3 * cols), rel=0.15
            )


@pytest.mark.parametrize("fields", [{"rank": 0}, {"density": 1.5}, {"targets": ("nose",)}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        SLTrain(**fields)(Run(0), world("text")["model"])


def test_without_the_sparse_part_nothing_would_ever_train():
    """Every product starts at zero, and so do the gradients of what made it: the low-rank rival needs random factors."""
    at = world("text")
    model = SLTrain(rank=4, alpha=4.0, density=0.0)(Run(0), at["model"])
    Run(0).fit(model, at["data"], steps=3, **HOW["text"])
    assert not any(m.make.b.any() for m in model.net.modules() if isinstance(m, Written))


def measure(seed: int, arm: str) -> float:
    """Pretraining from random weights; the rival has a low-rank part alone, both of its factors random."""
    at, run = world("text", seed), Run(seed)
    model = run.step(SLTrain(rank=4, alpha=4.0, density=0.03 if arm == "method" else 0.0), at["model"])
    if arm == "rival":
        for i, m in enumerate(m for m in model.net.modules() if isinstance(m, Written)):
            m.make.b.data = (2 * torch.rand(m.make.b.shape, generator=run.rng("b", i)) - 1) / m.make.b.shape[1] ** 0.5
    run.fit(model, at["data"], steps=50, **{**HOW["text"], "lr": 1e-2})
    return float(
        run.infer(
            model, at["held_out"], lambda b, o: losses.per_row(losses.rowwise("causal", b, o), b, "causal")
        ).mean()
    )


CLAIM = Claim(
    method="sltrain",
    world="text",
    rival="pure low-rank pretraining of the same rank",
    quantity="held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
