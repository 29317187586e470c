import pytest
import torch
from torch import nn

from trainlore.nouns import Model
from trainlore.primitives.intervals import bounds


def test_an_affine_layer_and_a_relu_are_the_textbooks():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    low, high = torch.tensor([[-1.0, 0.0, 2.0]]).double(), torch.tensor([[1.0, 0.5, 2.0]]).double()
    lower, upper, tape = bounds(Model(net), None, low, high)

    def layer(linear, lo, hi):
        """Each output takes, of every input, the end that suits it."""
        out = [[], []]
        for w, b in zip(linear.weight.tolist(), linear.bias.tolist(), strict=True):
            out[0].append(b + sum(v * (x if v > 0 else y) for v, x, y in zip(w, lo, hi, strict=True)))
            out[1].append(b + sum(v * (y if v > 0 else x) for v, x, y in zip(w, lo, hi, strict=True)))
        return out

    before = layer(net[0], low[0].tolist(), high[0].tolist())
    assert torch.allclose(torch.stack(tape["relus"][0])[:, 0], torch.tensor(before).double())
    after = layer(net[2], *[[max(0.0, v) for v in end] for end in before])
    assert torch.allclose(torch.stack([lower, upper])[:, 0], torch.tensor(after).double())


def test_what_has_no_known_bounds_is_refused():
    for layer in (nn.GELU(), nn.Softmax(-1)):
        with pytest.raises(ValueError, match="knows no bounds of"):
            bounds(Model(nn.Sequential(nn.Linear(3, 3), layer)), None, torch.zeros(2, 3), torch.ones(2, 3))
