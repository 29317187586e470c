from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.prune.block_movement import BlockMask, BlockMovement, kept_blocks, ramp
from trainlore.methods.train.objective.ema import EMA
from trainlore.primitives.masks import matrices, pool_blocks, spread_blocks, top
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def blocks(weight, side=4):
    return pool_blocks((weight != 0).float(), (side, side))


def test_mask_and_gradient_of_the_scores_against_a_loop():
    g = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 8, generator=g, dtype=torch.float64), torch.randn(3, 8, generator=g, dtype=torch.float64)
    mask = BlockMask(weight, (2, 4), "threshold", 1.0, 0.0).double()
    mask.raw.data = torch.randn(3, 2, generator=g, dtype=torch.float64)
    mask.level.fill_(0.5)
    out = x @ mask(weight).T
    out.square().sum().backward()
    gradient = 2 * out.detach().T @ x  # of the masked weight
    for i in range(3):
        for j in range(2):
            part = slice(2 * i, 2 * i + 2), slice(4 * j, 4 * j + 4)
            torch.testing.assert_close(mask.raw.grad[i, j], (gradient[part] * weight[part]).sum())
            wanted = weight[part] if mask.raw[i, j] > 0 else 0 * weight[part]
            torch.testing.assert_close(mask(weight)[part], wanted)


def test_a_few_blocks_always_stay():
    scores = torch.tensor([[-9.0, -8.0], [-7.0, -6.0]])
    assert kept_blocks(scores, 0.5, 0.005).tolist() == [[False, False], [False, True]]
    assert kept_blocks(scores, 0.5, 0.25).tolist() == [[False, False], [True, True]]


def test_the_ramp_is_the_authors_schedule():
    got = [0.1 * (1 - ramp(d, 0.1, 0.4)) for d in (0.0, 0.1, 0.35, 0.6, 1.0)]  # threshold 0 -> 0.1, cubic
    assert got == pytest.approx([0, 0, 0.1 * (1 - 0.5**3), 0.1, 0.1])


@pytest.mark.parametrize("more", [(), (EMA(decay=0.9),)])
def test_whole_blocks_of_exact_zeros_are_left(more):
    at = world("digits")
    part = BlockMovement(block=(4, 4), rule="top", keep=0.25)
    model = Run(0).fit(at["model"], at["data"], part, *more, steps=40, **HOW["digits"])
    for m in matrices(model.net).values():
        assert not hasattr(m, "parametrizations")
        count = blocks(m.weight)
        assert (count > 0).float().mean() == 0.25 and set(count.flatten().tolist()) == {0.0, 16.0}


def test_the_penalty_decides_how_much_goes():
    at, left = world("digits"), []
    for strength in (0.0, 30.0):
        part = BlockMovement(block=(4, 4), tau=0.4, strength=strength, pace=5.0)
        model = Run(0).fit(at["model"].copy(), at["data"], part, steps=60, **HOW["digits"])
        left.append(sum(int((m.weight != 0).sum()) for m in matrices(model.net).values()))
    assert left[1] < 0.7 * left[0]


def test_rows_and_columns_are_blocks_too():
    at = world("digits")
    part = BlockMovement(block=(1, 0), rule="top", keep=0.5)
    model = Run(0).fit(at["model"], at["data"], part, steps=20, **HOW["digits"])
    for m in matrices(model.net).values():
        assert (m.weight != 0).any(1).float().mean() == 0.5 and set((m.weight != 0).float().mean(1).tolist()) == {
            0.0,
            1.0,
        }


@pytest.mark.parametrize("fields", [{"keep": 0.0}, {"rule": "best"}, {"tau": 1.0}, {"warmup": 0.9}, {"block": (-1, 2)}])
def test_bad_fields_are_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        Run(0).fit(at["model"], at["data"], BlockMovement(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """A model trained to name digits is fine-tuned to tell odd from even, and left with a tenth of its 4 x 4 blocks."""
    at, run = world("digits"), Run(seed)
    data, test = (d.new({"features": d["features"], "label": d["label"] % 2}) for d in (at["data"], at["test"]))
    parts = [BlockMovement(block=(4, 4), rule="top", keep=0.1)] if arm == "method" else []
    model = run.fit(at["teacher"].copy(), data, *parts, steps=100, **HOW["digits"])
    for m in matrices(model.net).values() if arm == "rival" else ():
        kept = top(pool_blocks(m.weight.detach().abs(), (4, 4)), 0.1)
        m.weight.data *= spread_blocks(kept, (4, 4), m.weight.shape)
    return float(run.infer(model, test, lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="block_movement",
    world="digits",
    rival="fine-tuning, then the blocks of largest magnitude",
    quantity="test accuracy on a new task with a tenth of the 4 x 4 blocks",
    better="higher",
    measure=measure,
    seeds=20,
    quick=4,
)
