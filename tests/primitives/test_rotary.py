from __future__ import annotations

import pytest
import torch

from trainlore.primitives.rotary import raise_base
from trainlore.worlds.tiny import world


def test_the_base_of_the_positions():
    model = raise_base(world("text")["model"], 8e6, 512)
    rotary = model.net.model.rotary_emb
    assert rotary.inv_freq.tolist() == pytest.approx([8e6 ** (-2 * i / 16) for i in range(8)])
    assert model.window == 512 and model.net.config.rope_parameters["rope_theta"] == 8e6
    again = type(model.net)(model.net.config)  # what a reload would build
    assert torch.equal(again.model.rotary_emb.inv_freq, rotary.inv_freq)
    with pytest.raises(ValueError, match="rotary"):
        raise_base(world("digits")["model"], 8e6, 512)
