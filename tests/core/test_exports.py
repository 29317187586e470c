"""Every export is asked in the runtime that will read it; what cannot be held there says what can."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers

from trainlore import exports
from trainlore.errors import Bad
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.nouns import Model
from trainlore.worlds.tiny import world

pytest.importorskip("compressed_tensors")
pytest.importorskip("gguf")
pytest.importorskip("onnxruntime")

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)


def llama(**more):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=512, max_position_embeddings=64, **{**SIZES, **more})
    return Model(transformers.LlamaForCausalLM(config).eval(), "causal", world("text")["teacher"].tokenizer)


def rounded(model=None, **fields):
    return Nearest(tolerance=99.0, **fields)(model or llama())


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({"bits": 4, "per": 32}, 4),
        ({"bits": 4, "per": 32, "symmetric": True}, 4),
        ({"bits": 3, "per": "channel"}, 3),
        ({"bits": 8, "per": "channel", "symmetric": True}, 8),
    ],
)
def test_packed_weights_are_the_ones_that_were_measured(fields, bits, tmp_path):
    model = rounded(**fields)
    record = exports.write(model, tmp_path / "out", "compressed-tensors")
    assert record["distance"] < 1e-4
    from safetensors.torch import load_file

    state = load_file(tmp_path / "out" / "model.safetensors")
    packed = {k: v for k, v in state.items() if k.endswith("weight_packed")}
    assert len(packed) == len(model.grids) == 14
    sizes = sum(v.numel() * v.element_size() for v in packed.values())
    assert sizes == sum(model.net.get_submodule(p).weight.numel() for p in model.grids) * bits / 8
    if not fields.get("symmetric"):
        return  # transformers makes room for zero points in another shape than the library packs them in
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids = torch.arange(2, 12)[None]
    torch.testing.assert_close(back(ids).logits, model.net(ids).logits, rtol=1e-4, atol=1e-4)


def test_two_formats_in_one_model(tmp_path):
    model = rounded(bits=4, per=32, targets=("q_proj", "k_proj"))
    model = Nearest(bits=8, per="channel", symmetric=True, targets=("down_proj",), tolerance=9.0)(model)
    assert exports.write(model, tmp_path / "out", "compressed-tensors")["distance"] < 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2 and "lm_head" in config["ignore"]


@pytest.mark.parametrize("bits", [4, 8])
def test_gguf_holds_the_codes_themselves(bits, tmp_path):
    model = rounded(bits=bits, per=32, symmetric=True)
    record = exports.write(model, tmp_path / "out", "gguf")
    assert record["distance"] < 0.01 and record["bytes"] < record["bytes_before"]
    import gguf

    read = {t.name: t for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    kind = gguf.GGMLQuantizationType.Q4_0 if bits == 4 else gguf.GGMLQuantizationType.Q8_0
    down = read["blk.0.ffn_down.weight"]
    assert down.tensor_type == kind
    whole = gguf.quants.dequantize(down.data, down.tensor_type)
    np.testing.assert_allclose(
        whole, model.net.model.layers[0].mlp.down_proj.weight.detach().numpy(), rtol=2e-3, atol=1e-6
    )


def test_plain_gguf_and_grouped_queries(tmp_path):
    model = llama(num_key_value_heads=2)
    assert exports.write(model, tmp_path / "out", "gguf")["distance"] < 0.01


NETS = {
    "llama": llama,
    "gpt2": lambda: Model.of(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=90, n_embd=32, n_layer=2, n_head=2, n_positions=64)
        ).eval()
    ),
    "bert": lambda: Model.of(
        transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=90, **SIZES)).eval()
    ),
    "vit": lambda: Model.of(
        transformers.ViTForImageClassification(
            transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SIZES)
        ).eval()
    ),
    "mlp": lambda: world("digits")["teacher"],
}


@pytest.mark.parametrize("name", ["llama", "bert", "vit"])
def test_onnx_runs_in_onnxruntime(name, tmp_path):
    model = NETS[name]()
    record = exports.write(model, tmp_path / "out", "onnx")
    assert record["distance"] < 1e-3 and record["runtime"].startswith("onnxruntime")
    if name == "llama":  # any number of rows and any length, not those it was traced with
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
        ids = np.arange(2, 23)[None].repeat(5, 0)
        (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        want = model.net(torch.from_numpy(ids)).logits.detach().numpy()
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)


def test_zeros_are_left_out_and_come_back(tmp_path):
    model = Magnitude(keep=0.3, tolerance=9.0)(llama())
    record = exports.write(model, tmp_path / "out", "masked")
    assert record["distance"] == 0.0
    from trainlore.exports.masked import read

    state = read(tmp_path / "out")
    assert all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items() if k in state)
    plain = exports.write(model, tmp_path / "plain", "hf")
    assert record["bytes"] < 0.8 * plain["bytes"]


def test_what_a_format_cannot_hold_says_which_can(tmp_path):
    cases = [
        (llama(), "compressed-tensors", "quantize it first"),
        (rounded(bits=4, per=48), "compressed-tensors", "do not divide"),
        (rounded(bits=3, per=32), "gguf", "use compressed-tensors"),
        (NETS["gpt2"](), "gguf", "use hf"),
        (llama(), "masked", "prune it first"),
        (llama(), "pickle", "there are hf"),
    ]
    for model, form, said in cases:
        with pytest.raises(Bad, match=said):
            exports.write(model, tmp_path / "out", form)
        assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_weight_written_to_since_is_not_packed(tmp_path):
    model = rounded(bits=4, per=32)
    with torch.no_grad():
        for path in list(model.grids)[1:]:
            model.net.get_submodule(path).weight.mul_(1.003)
    exports.write(model, tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == [next(iter(model.grids))]


def test_a_missing_runtime_names_the_extra(monkeypatch, tmp_path):
    import importlib

    def gone(name):
        raise ImportError("no", name="gguf")

    monkeypatch.setattr(importlib, "import_module", gone)
    with pytest.raises(Bad, match=r"needs the package gguf: pip install 'trainlore\[export\]'"):
        exports.write(llama(), tmp_path / "out", "gguf")
