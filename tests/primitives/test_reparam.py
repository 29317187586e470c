from __future__ import annotations

import pytest
import torch

from trainlore.primitives.reparam import still


def test_weights_stand_still_inside_and_are_trained_again_as_they_were():
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    net[0].bias.requires_grad_(False)
    was = {name: p.requires_grad for name, p in net.named_parameters()}
    with still(net):
        assert not any(p.requires_grad for p in net.parameters())
        net[1].weight.requires_grad_(True)
        net.append(torch.nn.Linear(2, 2))  # what was not there keeps what it has
    assert {name: p.requires_grad for name, p in net.named_parameters() if name in was} == was
    assert all(p.requires_grad for p in net[2].parameters())
    with pytest.raises(RuntimeError), still(net):
        raise RuntimeError
    assert net[0].weight.requires_grad and not net[0].bias.requires_grad
