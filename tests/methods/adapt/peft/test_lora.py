from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as hf

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.lora import LoRA, low_rank, name_all
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def randomized(net: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in net.parameters():
        if p.requires_grad:
            p.data = torch.randn(p.shape, generator=generator)


def test_the_adapted_layer_is_the_formula():
    at = world("digits")
    plain = {n: m.weight.detach().clone() for n, m in at["model"].net.named_modules() if isinstance(m, torch.nn.Linear)}
    model = LoRA(rank=3, alpha=6.0)(Run(0), at["model"])
    randomized(model.net)
    adapted = {n: m for n, m in model.net.named_modules() if hasattr(m, "lora_A")}
    assert set(adapted) == set(list(plain)[:-1])  # all but the output head
    for name, m in adapted.items():
        a, b = m.lora_A["default"].weight, m.lora_B["default"].weight
        x = torch.eye(a.shape[1])
        delta = torch.stack([sum(b[:, k] * a[k, j] for k in range(3)) for j in range(a.shape[1])], 1)
        torch.testing.assert_close((m(x) - m.base_layer.bias).T, plain[name] + 2.0 * delta, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(low_rank(plain[name], a, b, 6.0), plain[name] + 2.0 * delta, rtol=1e-4, atol=1e-4)


def test_it_starts_equal_and_trains_rank_times_both_sides():
    model = world("text")["model"]
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        before = model(batch)
        model = Run(0).step(LoRA(rank=4), model)
        torch.testing.assert_close(model(batch), before)
    # width 32, middle 64: q, k, v, o and gate, up, down, in each of 2 blocks
    assert sum(p.numel() for p in model.net.parameters() if p.requires_grad) == 2 * 4 * (4 * (32 + 32) + 3 * (32 + 64))


def test_adapters_are_saved_in_pefts_format_and_merge_to_the_same(tmp_path):
    from peft import PeftModel

    model = world("text")["model"]
    base = model.copy().net
    model = LoRA(rank=4, targets=("q_proj", "v_proj"))(Run(0), model)
    randomized(model.net)
    model.net.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (said["r"], said["lora_alpha"], sorted(said["target_modules"])) == (4, 16.0, ["q_proj", "v_proj"])
    assert not (tmp_path / "model.safetensors").exists()
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        merged = PeftModel.from_pretrained(base, tmp_path).merge_and_unload().eval()
        torch.testing.assert_close(merged(**batch).logits, model(batch), rtol=1e-4, atol=1e-4)


def test_named_weights_stay_trained_and_randomness_is_the_seeds():
    nets = []
    for seed in (0, 0, 1):
        torch.rand(seed + 1)
        config = hf.BertConfig(
            vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
        with Run(9).global_rng():
            net = hf.BertForSequenceClassification(config)
        nets.append(LoRA(rank=2, trainable=("classifier",))(Run(seed), Model.of(net)).net)
    names = {n for n, p in nets[0].named_parameters() if p.requires_grad}
    assert {n for n in names if "lora" not in n} == {"classifier.weight", "classifier.bias"}
    first, same, other = ([p for n, p in net.named_parameters() if "lora_A" in n][0] for net in nets)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_layers_are_named_by_their_ends_only_where_that_is_clear():
    assert name_all(["a.q", "b.q"], ["a.q", "b.q", "a.k"]) == ["q"]
    assert name_all(["a.q"], ["a.q", "b.q"]) == r"a\.q"


@pytest.mark.parametrize("fields", [{"rank": 0}, {"dropout": 1.0}, {"targets": ("nose",)}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LoRA(**fields)(Run(0), world("text")["model"])


def test_a_second_time_is_an_error():
    with pytest.raises(ValueError, match="fold"):
        LoRA()(Run(0), LoRA(targets=("q_proj",))(Run(0), world("text")["model"]))


def dimmed(data):
    return data.with_(features=(0.4 * np.asarray(data["features"])).astype(np.float32))


def measure(seed: int, arm: str) -> float:
    """20 labelled digits in dim light; the best of five learning rates is 1e-4 for both arms."""
    at, run = world("digits", seed), Run(seed)
    model = run.step(LoRA(rank=4), at["teacher"]) if arm == "method" else at["teacher"]
    rows = dimmed(at["data"]).take(run.numpy("rows").permutation(len(at["data"]))[:20])
    run.fit(model, rows, steps=100, **{**HOW["digits"], "lr": 1e-4})
    return float(run.infer(model, dimmed(at["test"]), lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="lora",
    world="digits",
    rival="full fine-tuning",
    quantity="test accuracy after adapting to dim digits with 20 labels",
    better="higher",
    measure=measure,
    seeds=20,
    quick=20,
)
