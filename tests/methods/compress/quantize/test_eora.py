from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.quantize.awq import AWQ
from trainlore.methods.compress.quantize.eora import EoRA, factors
from trainlore.methods.compress.quantize.gptq import GPTQ
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.masks import matrices, top_pattern, weight_of, write
from trainlore.primitives.reparam import fold, put_beside
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(lost, x, up, down):
    return float(((lost - up @ down) @ x.T).square().sum())


def plain(lost, rank):
    u, s, v = torch.linalg.svd(lost, full_matrices=False)
    return u[:, :rank] * s[:rank], v[:rank]


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_against_the_textbook_projection(rank):
    x, lost = rand(80, 12) @ rand(12, 12, seed=1), rand(7, 12, seed=2)
    up, down = factors(lost, x.T @ x / 80, rank)
    root = torch.linalg.cholesky(x.T @ x)  # any root of X'X gives the same best product
    u, s, v = torch.linalg.svd(lost @ root)
    best = (u[:, :rank] * s[:rank]) @ v[:rank] @ torch.linalg.inv(root)
    torch.testing.assert_close(up @ down, best)
    assert loss(lost, x, up, down) == pytest.approx(float(s[rank:].square().sum()))
    assert loss(lost, x, up, down) < loss(lost, x, *plain(lost, rank)) < float((lost @ x.T).square().sum())
    torch.testing.assert_close(up.norm(dim=0), (s[:rank] / 80**0.5).sqrt())  # B holds half of the singular values


def test_inputs_that_are_never_on_or_always_alike_leave_it_finite():
    x, lost = rand(40, 6), rand(5, 6, seed=1)
    x[:, 2], x[:, 4] = 0.0, x[:, 3]
    up, down = factors(lost, x.T @ x / 40, 4)
    assert up.isfinite().all() and down.isfinite().all()
    assert loss(lost, x, up, down) == pytest.approx(0.0, abs=1e-9)  # four directions are all there are
    assert factors(lost, torch.zeros(6, 6), 2)[1].isfinite().all()


def compressed(how, at):
    model = at["teacher"].copy()
    if how == "pruned":
        for layer in matrices(model.net).values():
            write(layer, weight_of(layer) * top_pattern(weight_of(layer).abs(), 2, 4))
        return model
    if how == "nearest":
        return Nearest(bits=3, tolerance=9.0)(model)
    method = AWQ(bits=3, rows=16, ratios=5, tolerance=9.0) if how == "awq" else GPTQ(bits=3, rows=16, tolerance=9.0)
    return method(model, at["data"])


@pytest.mark.parametrize("how", ["nearest", "gptq", "awq", "pruned"])
def test_whatever_compressed_it_is_left_as_it_was_and_made_up_for(how):
    at, run = world("text"), Run(0)
    small = compressed(how, at)
    outputs = [run.infer(m, at["held_out"], lambda b, out: out[:, :8]) for m in (at["teacher"], small)]
    kept = {path: weight_of(layer).clone() for path, layer in matrices(small.net).items()}
    after = run.step(EoRA(before=at["teacher"], rank=6, rows=64), small, at["data"])
    outputs.append(run.infer(after, at["held_out"], lambda b, out: out[:, :8]))
    assert (outputs[2] - outputs[0]).norm() < 0.9 * (outputs[1] - outputs[0]).norm()
    for path, weight in kept.items():
        layer = after.net.get_submodule(path)
        assert torch.equal(layer.make.weight, weight)
        assert how == "pruned" or after.grids[path].holds(layer.make.weight)
        assert layer.make.up.shape[1] == 6
    trained = {name.rpartition(".")[2] for name, p in after.net.named_parameters() if p.requires_grad}
    assert trained == {"up", "down"}
    fold(after.net)
    torch.testing.assert_close(run.infer(after, at["held_out"], lambda b, out: out[:, :8]), outputs[2])


def test_all_ranks_give_the_model_back():
    at, run = world("text"), Run(0)
    after = EoRA(before=at["teacher"], rows=16)(Nearest(bits=3, tolerance=9.0)(at["teacher"].copy()), at["data"])
    want, got = (run.infer(m, at["held_out"], lambda b, out: out[:, :8]) for m in (at["teacher"], after))
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def test_bad_input_is_named():
    at = world("text")
    small = Nearest(bits=3, tolerance=9.0)(at["teacher"].copy())
    with pytest.raises(ValueError, match="rank=0"):
        EoRA(before=at["teacher"], rank=0)(small, at["data"])
    with pytest.raises(ValueError, match="nothing was lost"):
        EoRA(before=small, rows=8)(small.copy(), at["data"])
    with pytest.raises(ValueError, match="not of that shape|not in it"):
        EoRA(before=world("digits")["teacher"])(small, at["data"])
    other = Nearest(bits=3, tolerance=9.0)(at["teacher"].copy())
    other.net.model.norm.weight.data *= 2  # the last norm feeds nothing that could make up for it
    with pytest.raises(ValueError, match="model.norm.weight is not what it is"):
        EoRA(before=at["teacher"])(other, at["data"])


def measure(seed: int, arm: str) -> float:
    at, run = world("text"), Run(seed)
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    model = run.step(Nearest(bits=3, tolerance=9.0), at["teacher"].copy())
    if arm == "method":
        model = run.step(EoRA(before=at["teacher"], rank=4, rows=64), model, at["data"])
    else:
        for path, layer in matrices(model.net).items():
            whole = weight_of(at["teacher"].net.get_submodule(path))
            put_beside(model.net, path, *plain(whole - weight_of(layer), 4))
    after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
    return float((after - before).norm() / before.norm())


CLAIM = Claim(
    method="eora",
    world="text",
    rival="the plain decomposition of what the weights lost",
    quantity="relative distance of the logits on unseen rows at 3 bits with rank 4",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
