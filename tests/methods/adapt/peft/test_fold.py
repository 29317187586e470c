from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.bitfit import BitFit
from trainlore.methods.adapt.peft.bone import Bone
from trainlore.methods.adapt.peft.fold import Fold
from trainlore.methods.adapt.peft.lora import LoRA
from trainlore.methods.start.initialization.sltrain import SLTrain
from trainlore.nouns import Model
from trainlore.primitives import reparam
from trainlore.runs import Run
from trainlore.steps import distance
from trainlore.worlds.tiny import HOW, world

FORMS = {
    "lora": LoRA(rank=4),
    "bone": Bone(rank=8),
    "tiled bone": Bone(rank=5, guided=False),
    "bitfit": BitFit(add=True),
    "sltrain": SLTrain(rank=4, alpha=4.0),
}


def adapted(form: str, seed: int = 0, steps: int = 8) -> tuple[Model, dict]:
    at, run = world("text", seed), Run(seed)
    model = run.step(FORMS[form], at["model"])
    run.fit(model, at["data"], steps=steps, **{**HOW["text"], "lr": 1e-2})
    return model, at["data"].batch(range(8), model)


@pytest.mark.parametrize("form", FORMS)
def test_folding_changes_no_output_and_leaves_plain_weights(form, tmp_path):
    model, batch = adapted(form)
    with torch.no_grad():
        before = model(batch)
        folded = Run(0).step(Fold(), model)
        assert distance(before, folded(batch)) < 1e-5
        plain = world("text")["model"].net
        extra = set(folded.net.state_dict()) ^ set(plain.state_dict())
        assert all(name.endswith("bias") for name in extra) and (form == "bitfit") == bool(extra)
        assert all(p.requires_grad for p in folded.net.parameters())
        back = Model.of(str(folded.save(tmp_path / "model")))  # an ordinary Hugging Face folder
        torch.testing.assert_close(back(batch), folded(batch), rtol=1e-5, atol=1e-5)


def test_peft_models_and_torch_parametrizations_are_folded_too():
    from peft import LoraConfig, get_peft_model

    net = nn.Sequential(OrderedDict(first=nn.Linear(6, 6), act=nn.ReLU(), last=nn.Linear(6, 3)))
    parametrize.register_parametrization(net.last, "weight", nn.Softplus())
    wrapped = get_peft_model(net, LoraConfig(r=2, target_modules=["first"], init_lora_weights=False))
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    expected = wrapped(x)
    folded = reparam.fold(wrapped)
    assert type(folded) is nn.Sequential and type(folded.first) is type(folded.last) is nn.Linear
    torch.testing.assert_close(folded(x), expected)


def test_layers_go_on_reading_their_inputs_in_few_bits():
    from trainlore.primitives.activations import Rounder, read_rounded

    at = world("text")
    for form in ("lora", "beside"):
        model, layer = at["teacher"].copy(), "model.layers.0.mlp.down_proj"
        read_rounded(model.net.get_submodule(layer), Rounder("int4"))
        batch = at["data"].batch(range(4), model)
        if form == "beside":
            g = torch.Generator().manual_seed(0)
            out, into = model.net.get_submodule(layer).weight.shape
            up, down = torch.randn(out, 2, generator=g), torch.randn(2, into, generator=g)
            reparam.put_beside(model.net, layer, up * 0.1, down * 0.1)
            model = reparam.reshaped(model)
        before = model(batch)
        folded = Fold()(Run(0), Run(0).step(FORMS[form], model) if form != "beside" else model)
        plain = folded.net.get_submodule(layer)
        assert type(plain) is nn.Linear and plain.reads.form == "int4"
        torch.testing.assert_close(folded(batch), before, atol=1e-4, rtol=1e-4)
        full = folded.copy()
        full.net.get_submodule(layer).reads = nn.Identity()
        assert distance(before.detach(), full(batch).detach()) > 1e-3  # rounding is felt


class Doubled(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self):
        return 2 * self.weight


def test_a_turned_layer_comes_back_turned():
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(5, 3)
    written = reparam.Written(layer, Doubled(layer.weight.detach().T))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    plain = written.plain()
    assert type(plain) is Conv1D and plain.weight.shape == (3, 5)
    torch.testing.assert_close(plain(x), written(x))
    torch.testing.assert_close(written(x), x @ (2 * layer.weight) + layer.bias)


def measure(seed: int, arm: str) -> float:
    """How far the outputs are from the adapted model's; the rival takes the adapters off instead of adding them up."""
    model, batch = adapted("lora", seed)
    with torch.no_grad():
        before = model(batch)
        if arm == "rival":
            for module in model.net.modules():
                if hasattr(module, "lora_B"):
                    module.lora_B["default"].weight.zero_()
        return distance(before, Fold()(Run(seed), model)(batch))


CLAIM = Claim(
    method="fold",
    world="text",
    rival="dropping the adapters",
    quantity="relative distance of the logits from the adapted model's",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
