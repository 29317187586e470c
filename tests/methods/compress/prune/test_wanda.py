from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.prune.wanda import Wanda, kept
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_the_mask_against_a_loop():
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(5, 12, generator=g), torch.randn(40, 12, generator=g) * torch.arange(12)
    size = x.square().mean(0).sqrt()
    score = [[abs(float(w[i, j])) * sum(v * v for v in x[:, j].tolist()) ** 0.5 for j in range(12)] for i in range(5)]
    for i in range(5):
        best = sorted(range(12), key=lambda j: -score[i][j])[:3]
        assert kept(w, size, 0.25)[i].nonzero().flatten().tolist() == sorted(best)
        for at in range(0, 12, 4):
            best = sorted(range(at, at + 4), key=lambda j: -score[i][j])[:2]
            assert (kept(w, size, 1.0, (2, 4))[i, at : at + 4].nonzero().flatten() + at).tolist() == sorted(best)
    flat = sorted((s for row in score for s in row), reverse=True)[14]
    layer = kept(w, size, 0.25, None, "layer")
    assert layer.tolist() == [[s >= flat * (1 - 1e-6) for s in row] for row in score]
    assert not torch.equal(kept(w, size, 0.25), kept(w, torch.ones(12), 0.25))  # the inputs decide


def test_a_small_weight_on_a_loud_input_stays_and_a_deaf_input_goes():
    w = torch.tensor([[0.1, 1.0, 5.0, 1.0]])
    assert kept(w, torch.tensor([100.0, 1.0, 0.0, 2.0]), 0.5).tolist() == [[True, False, False, True]]


@pytest.mark.parametrize(("name", "fields"), [("text", {"keep": 0.75}), ("digits", {"pattern": "2:4"})])
def test_every_row_keeps_its_share_and_what_stays_is_unchanged(name, fields):
    at = world(name)
    before = {n: weight_of(m).clone() for n, m in matrices(at["teacher"].net).items()}
    after = Run(0).step(Wanda(rows=32, tolerance=9.0, **fields), at["teacher"], at["data"])
    for n, m in matrices(after.net).items():
        w = weight_of(m)
        assert ((w != 0).float().mean(1) == fields.get("keep", 0.5)).all()
        assert torch.equal(w[w != 0], before[n][w != 0])
        if "pattern" in fields:
            assert ((w != 0).unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_later_blocks_read_what_pruned_ones_give():
    at, masks = world("text"), []
    for targets in (("layers.1.mlp.down_proj",), ()):
        after = Wanda(rows=32, keep=0.25, targets=targets, tolerance=9.0)(at["teacher"].copy(), at["data"])
        masks.append(after.net.model.layers[1].mlp.down_proj.weight != 0)
    assert not torch.equal(*masks)


def test_bad_input_is_named():
    at = world("text")
    for fields, word in (({"keep": 0.0}, "keep"), ({"keep": 0.01}, "keep"), ({"scope": "global"}, "scope")):
        with pytest.raises(ValueError, match=word):
            Wanda(rows=8, **fields)(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="runs of 7"):
        Wanda(rows=8, pattern="2:7")(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="calibration rows"):
        Wanda(rows=8)(at["teacher"].copy(), at["data"].take([0, 1, 2]))
    with pytest.raises(ValueError, match="quantized already"):
        Wanda(rows=8)(Nearest(tolerance=9.0)(at["teacher"].copy()), at["data"])
    with pytest.raises(ValueError, match="finite"):
        kept(torch.tensor([[torch.inf, 1.0]]), torch.ones(2), 0.5)


def measure(seed: int, arm: str) -> float:
    """How far the logits move on unseen rows, half the weights gone, freely and in the pattern 2:4: the mean of both."""
    at, run, moved = world("text"), Run(seed), 0.0
    before = run.infer(at["teacher"], at["held_out"], lambda b, out: out[:, :8])
    for pattern in ("", "2:4"):
        if arm == "method":
            wanda = Wanda(keep=0.5, pattern=pattern, rows=64, tolerance=9.0)
            model = run.step(wanda, at["teacher"].copy(), at["data"])
        else:
            model = run.step(Magnitude(keep=0.5, scope="layer", pattern=pattern, tolerance=9.0), at["teacher"].copy())
        after = run.infer(model, at["held_out"], lambda b, out: out[:, :8])
        moved += float((after - before).norm() / before.norm()) / 2
    return moved


CLAIM = Claim(
    method="wanda",
    world="text",
    rival="magnitude in each layer",
    quantity="relative distance of the logits on unseen rows at half the weights, free and 2:4",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
