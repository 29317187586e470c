from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.bone import Bone, guided_weight, tiled_weight
from trainlore.methods.adapt.peft.lora import LoRA
from trainlore.primitives.reparam import Written
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_guided_blocks_against_a_loop():
    weight, blocks = rand(6, 9), rand(2, 3, 3, seed=1)
    expected = weight.clone()
    for i in range(2):
        for j in range(3):
            old = weight[3 * i : 3 * i + 3, 3 * j : 3 * j + 3]
            expected[3 * i : 3 * i + 3, 3 * j : 3 * j + 3] = old + old @ blocks[i] + blocks[i]
    torch.testing.assert_close(guided_weight(weight, blocks), expected)


@pytest.mark.parametrize("cols", [8, 10])
def test_tiled_blocks_against_a_loop(cols):
    weight, block = rand(5, cols), rand(5, 4, seed=1)
    expected = torch.tensor([[float(weight[i, j] + block[i, j % 4]) for j in range(cols)] for i in range(5)])
    torch.testing.assert_close(tiled_weight(weight, block), expected.double())


@pytest.mark.parametrize("guided", [True, False])
def test_weights_are_those_of_peft(guided):
    """The library's MiSS is the later name of this method."""
    from peft import MissConfig, get_peft_model

    net = torch.nn.Sequential(torch.nn.Linear(8, 12, bias=False))
    weight = net[0].weight.detach().clone()
    theirs = get_peft_model(net, MissConfig(r=4, target_modules=["0"], init_weights="bat" if guided else True))
    layer = theirs.base_model.model[0]
    block = rand(*layer.miss_block["default"].shape).float()
    layer.miss_block["default"].data.copy_(block)
    ours = guided_weight(weight, block) if guided else tiled_weight(weight, block.T)
    x = rand(3, 8, seed=2).float()
    torch.testing.assert_close(theirs(x), x @ ours.T)


def test_it_starts_equal_and_trains_out_times_rank():
    at = world("text")
    model, rows = at["model"], at["data"].take(range(4))
    batch, before = rows.batch(range(4), model), model.size
    with torch.no_grad():
        expected = model(batch)
        model = Run(0).step(Bone(rank=8), model)
        torch.testing.assert_close(model(batch), expected)
    written = [m for m in model.net.modules() if isinstance(m, Written)]
    assert len(written) == 14  # 7 in each of 2 blocks; the output head is left out
    trained = sum(p.numel() for p in model.net.parameters() if p.requires_grad)
    assert trained == sum(8 * m.weight.shape[0] for m in written) and before < model.size


@pytest.mark.parametrize("fields", [{"rank": 0}, {"rank": 5}, {"targets": ("nose_proj",)}, {"trainable": ("nose",)}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        Bone(**{"rank": 8, **fields})(Run(0), world("text")["model"])


def rolled(data):
    pixels = np.asarray(data["features"]).reshape(-1, 8, 8)
    return data.with_(features=np.ascontiguousarray(np.roll(pixels, 1, 2).reshape(-1, 64)))


def measure(seed: int, arm: str) -> float:
    """60 labelled digits moved by a pixel; LoRA of rank 4 trains as many weights. Both at the best of four rates."""
    at, run = world("digits", seed), Run(seed)
    model = run.step(Bone(rank=8) if arm == "method" else LoRA(rank=4, alpha=8.0), at["teacher"])
    rows = rolled(at["data"]).take(run.numpy("rows").permutation(len(at["data"]))[:60])
    run.fit(model, rows, steps=100, **HOW["digits"])
    return float(run.infer(model, rolled(at["test"]), lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="bone",
    world="digits",
    rival="LoRA with as many trained weights",
    quantity="test accuracy after adapting to moved digits",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
