from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.errors import Bad
from trainlore.methods.train.objective.ema import EMA
from trainlore.primitives.holding import find, hold, holding, let_go, shaped
from trainlore.primitives.masks import matrices, top, weight_of, write
from trainlore.primitives.reparam import fold
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def halved(model):
    layers = matrices(model.net)
    for layer in layers.values():
        write(layer, weight_of(layer) * top(weight_of(layer).abs(), 0.5))
    return layers


@pytest.mark.parametrize("parts", [(), (EMA(decay=0.9),)])
@pytest.mark.parametrize("straight", [False, True])
def test_zeros_stay_through_training_and_the_rest_moves(straight, parts):
    at = world("digits")
    layers = halved(at["model"])
    before = {path: weight_of(layer).clone() for path, layer in layers.items()}
    hold(layers, straight=straight)
    model = Run(0).fit(at["model"], at["data"], *parts, steps=15, weight_decay=0.1, **HOW["digits"])
    net = fold(model.net)
    assert not holding(net)
    for path, layer in matrices(net).items():
        assert torch.equal(layer.weight == 0, before[path] == 0)
        assert not torch.equal(layer.weight, before[path])


def test_gradients_stop_at_the_mask_or_go_straight_through():
    g = torch.Generator().manual_seed(0)
    x, kept = torch.randn(3, 4, generator=g), torch.rand(2, 4, generator=g) > 0.5
    for straight in (False, True):
        layer = nn.Linear(4, 2, bias=False)
        made = hold({"a": layer}, {"a": kept}, straight)["a"]
        assert find(layer) is made and torch.equal(layer.weight == 0, ~kept)
        layer(x).sum().backward()
        dense = x.sum(0).expand(2, 4)
        torch.testing.assert_close(layer.parametrizations.weight.original.grad, dense if straight else dense * kept)


def test_turned_and_convolutional_layers_and_infinities():
    from transformers.pytorch_utils import Conv1D

    for layer, outs, ins in ((Conv1D(6, 4), 6, 4), (nn.Conv2d(3, 2, 2), 2, 12)):
        kept = torch.zeros(outs, ins, dtype=torch.bool)
        kept[0] = True
        layer.weight.data.fill_(1.0)
        layer.weight.data.view(-1)[-1] = torch.inf  # masked: gone, and no NaN left behind
        hold({"a": layer}, {"a": kept})
        let_go({"a": layer})
        assert torch.equal(layer.weight.detach(), shaped(layer, kept).float()) and layer.weight.requires_grad


def test_two_masks_on_one_layer_are_refused():
    layer = nn.Linear(4, 4)
    hold({"a": layer})
    with pytest.raises(Bad, match="targets"):
        hold({"a": layer})
    assert list(holding(nn.Sequential(layer), ("0",))) == ["0"] and not holding(nn.Sequential(layer), ("1",))
