"""Every export is asked in the runtime that will read it; what cannot be held there says what can."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import torch
import transformers

from trainlore import exports
from trainlore.errors import Bad
from trainlore.exports import llama as running
from trainlore.exports import rows, telling
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.grids import Grid
from trainlore.worlds import two_domains

pytest.importorskip("compressed_tensors")
gguf = pytest.importorskip("gguf")
pytest.importorskip("onnxruntime")

SIZES = dict(hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
WORDS = dict(vocab_size=400, max_position_embeddings=64)
GPT2 = dict(vocab_size=400, n_embd=64, n_layer=2, n_head=4, n_positions=64)


def made(name, **more):
    """A net whose every weight matters: queries that look somewhere, norms and biases that are not 1 and 0."""
    hf = transformers
    cls, config = {
        "llama": lambda: (hf.LlamaForCausalLM, hf.LlamaConfig(**{**WORDS, **SIZES, **more})),
        "grouped": lambda: (
            hf.LlamaForCausalLM,
            hf.LlamaConfig(**WORDS, **SIZES, num_key_value_heads=2, tie_word_embeddings=True, attention_bias=True),
        ),
        "qwen2": lambda: (hf.Qwen2ForCausalLM, hf.Qwen2Config(**{**WORDS, **SIZES, "num_key_value_heads": 2, **more})),
        "gpt2": lambda: (hf.GPT2LMHeadModel, hf.GPT2Config(**{**GPT2, **more})),
        "bert": lambda: (hf.BertForSequenceClassification, hf.BertConfig(**WORDS, **{**SIZES, **more}, num_labels=3)),
        "vit": lambda: (
            hf.ViTForImageClassification,
            hf.ViTConfig(**{**SIZES, **more}, image_size=8, patch_size=4, num_channels=1, num_labels=3),
        ),
    }[name]()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = cls(config).eval()
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p), alpha=0.15)
    model = Model.of(net)
    model.tokenizer = two_domains.tokenizer() if model.input == "input_ids" else None
    return model


def rounded(model, **fields):
    return Nearest(tolerance=99.0, **{"bits": 4, "per": 32, "symmetric": True, **fields})(model)


@pytest.fixture
def without_llama(monkeypatch):
    """transformers reads GGUF where llama-cpp-python is not installed."""
    monkeypatch.setattr(running, "installed", lambda: False)


# ---- what each format makes of each family

NETS = ("llama", "grouped", "qwen2", "gpt2", "bert", "vit")
LINEAR = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "fc1", "fc2")  # not the patches of a ViT
REFUSED = {
    ("compressed-tensors", "gpt2"): r"c_attn is a Conv1D, .* gguf and hf can hold it",
    (
        "gguf",
        "bert",
    ): "not for BertForSequenceClassification: use hf, onnx or, for packed linear layers, compressed-tensors",
    ("gguf", "vit"): "not for ViTForImageClassification: use hf, onnx",
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("form", ["hf", "masked", "compressed-tensors", "gguf"])
def test_a_family_passes_the_gate_or_is_told_where_to_go(form, net, tmp_path, without_llama):
    model = made(net)
    if form == "masked":
        model = Magnitude(keep=0.3, tolerance=99.0)(model)
    elif form != "hf":
        targets = (
            tuple(t for t in LINEAR if any(p.endswith(t) for p, _ in model.net.named_modules())) if net == "vit" else ()
        )
        model = rounded(model, targets=targets)
    if (form, net) in REFUSED:
        with pytest.raises(Bad, match=REFUSED[form, net]):
            exports.write(model, tmp_path / "out", form)
        assert not list(tmp_path.iterdir())
        return
    record = exports.write(model, tmp_path / "out", form)
    assert record["distance"] <= record["tolerance"] <= 0.01 and record["model"] == type(model.net).__name__
    assert form == "hf" or record["bytes"] < record["bytes_before"] + 60_000  # tokenizer and page
    assert record == json.loads((tmp_path / "out" / "export.json").read_text())


SLOW = [pytest.param(net, marks=pytest.mark.slow) for net in ("qwen2", "gpt2", "bert")]  # a trace takes seconds


@pytest.mark.parametrize("net", ["llama", "vit", *SLOW])
def test_onnx_runs_in_onnxruntime(net, tmp_path):
    model = made(net, **({"n_layer": 1} if net == "gpt2" else {"num_hidden_layers": 1}))
    record = exports.write(model, tmp_path / "out", "onnx")
    assert record["distance"] < 1e-3 and record["runtime"].startswith("onnxruntime")
    if net == "llama":  # any number of rows and any length, not those it was traced with
        import onnxruntime

        session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
        ids = np.arange(2, 23)[None].repeat(5, 0)
        (found,) = session.run(["logits"], {"input_ids": ids, "attention_mask": np.ones_like(ids)})
        want = model.net(torch.from_numpy(ids)).logits.detach().numpy()
        np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-3)


def test_what_a_format_cannot_hold_says_which_can(tmp_path):
    yarn = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
    cases = [
        (made("llama"), "compressed-tensors", "quantize it first"),
        (rounded(made("llama"), per=48), "compressed-tensors", "do not divide"),
        (
            rounded(made("llama"), per=48),
            "gguf",
            "of 64 inputs, is in int4 per 48; gguf holds .* use compressed-tensors",
        ),
        (rounded(made("llama"), bits=8, symmetric=False), "gguf", "is in uint8 per 32; .* use compressed-tensors"),
        (
            made("gpt2", activation_function="relu"),
            "gguf",
            "the activation relu, which llama.cpp's gpt2 has not: use hf or onnx",
        ),
        (made("llama", rope_parameters=yarn), "gguf", "positions of the kind linear"),
        (
            rounded(made("vit")),
            "compressed-tensors",
            "projection is a Conv2d, .* hf can hold it, or name the linear ones",
        ),
        (made("llama"), "masked", "prune it first"),
        (made("llama"), "pickle", "there are hf"),
        (preset("t5-4m", vocab=300), "onnx", "a seq2seq model writes in two: use hf"),
        *((preset("mlp"), form, f"so {form} has no config for it: use onnx") for form in ("hf", "masked", "gguf")),
    ]
    for model, form, said in cases:
        with pytest.raises(Bad, match=said):
            exports.write(model, tmp_path / "out", form)
        assert not list(tmp_path.iterdir())  # nothing is left behind


def test_a_missing_runtime_names_the_extra(monkeypatch, tmp_path):
    import importlib

    for form, package in (("gguf", "gguf"), ("onnx", "onnxruntime"), ("compressed-tensors", "compressed_tensors")):

        def gone(name, package=package):
            raise ImportError("no", name=package)

        with monkeypatch.context() as patched:
            patched.setattr(importlib, "import_module", gone)
            with pytest.raises(Bad, match=rf"needs the package {package}: pip install 'trainlore\[export\]'"):
                exports.write(made("llama"), tmp_path / "out", form)


# ---- the report


def test_the_report_has_parity_metric_size_and_speed(tmp_path):
    texts = two_domains.make(6, seed=3, domains=("a",))["text"].to_pylist()
    model = rounded(made("llama"))
    record = exports.write(model, tmp_path / "out", "compressed-tensors", data=Data.of([*texts, "gala " * 200]))
    assert record["rows"] == {"count": 7, "whose": "given"} and record["counted"] == "tokens"
    low, high = record["loss_interval"]
    assert low <= record["loss_change"] <= high and abs(record["loss_change"]) < 1e-3 < record["loss_before"]
    assert record["agreement"] > 0.99 and record["bytes_before"] == 4 * model.size
    assert min(record["tokens_per_second"], record["tokens_per_second_before"]) > 0
    said = "\n".join(telling.told(record))
    shown = (tmp_path / "out" / "export.html").read_text()
    for part in ("relative distance of the logits", "on 7 rows given", "95 %", "MB on disk", "tokens a second there"):
        assert part in said
    for part in (
        "LlamaForCausalLM as compressed-tensors",
        "paired change",
        "tokens a second",
        "MB",
        f"{record['loss_before']:.4f}",
    ):
        assert part in shown
    picture = exports.write(made("vit"), tmp_path / "vit", "hf")
    assert picture["counted"] == "rows" and "rows a second" in telling.told(picture)[-1]
    with pytest.raises(Bad, match="no rows to judge by"):
        exports.write(model, tmp_path / "none", "hf", data=Data.of(texts).take([]))


def test_the_change_is_that_of_the_rows_and_padding_does_not_count():
    model = made("llama")
    batch, whose = rows.rows_for(model, Data.of(["gala bese", "gala bese kami tuve " * 4] * 4))
    assert whose == "given"
    with torch.no_grad():
        before = model(batch)
        after = before + 0.3 * torch.randn(before.shape, generator=torch.Generator().manual_seed(1))
    found = rows.change(model, batch, before, after)
    by_hand = []
    for row, mask, a, b in zip(batch["input_ids"], batch["attention_mask"].bool(), before, after, strict=True):
        want = row[mask][1:]
        losses = [-x[mask][:-1].log_softmax(-1)[range(len(want)), want].mean() for x in (a, b)]
        by_hand.append(float(losses[1] - losses[0]))
    assert found["loss_change"] == pytest.approx(np.mean(by_hand), abs=1e-5)
    low, high = found["loss_interval"]
    assert low < found["loss_change"] < high and high - low < 6 * np.std(by_hand)
    wild = before.clone()
    wild[~batch["attention_mask"].bool()] = 1e6
    at = rows.real(model, batch, wild)
    assert torch.equal(wild[at], before[at]) and rows.counted(model, batch)[1] == int(batch["attention_mask"].sum())


def test_where_rows_come_from():
    model = made("gpt2")
    batch, whose = rows.rows_for(model)
    assert whose == "that the model wrote" and batch["input_ids"].shape == (16, 32)
    again, _ = rows.rows_for(model)
    assert torch.equal(batch["input_ids"], again["input_ids"])
    with torch.no_grad():
        own = rows.change(model, batch, model(batch), model(batch))["loss_before"]
        noise = torch.randint(400, (16, 32), generator=torch.Generator().manual_seed(0))
        other = {**batch, "input_ids": noise, "labels": noise}
        assert (
            own < rows.change(model, other, model(other), model(other))["loss_before"]
        )  # it is likelier what it writes
    ids = torch.arange(24).view(2, 12)
    model.probe = {
        "input_ids": ids,
        "labels": ids,
        "segment_ids": ids // 6,
        "position_ids": ids % 6,
        "row": torch.arange(2),
    }
    batch, whose = rows.rows_for(model)
    assert whose == "kept from training" and not {"segment_ids", "position_ids"} & set(batch)
    assert rows.rows_for(made("bert"))[1] == "made up"
    few = {"input_ids": torch.zeros(32, 300, dtype=torch.long), "row": torch.arange(32)}
    model.net.config.vocab_size = 1 << 17
    assert rows._cut(model, few)["input_ids"].shape == (4, 256)  # logits of half a gigabyte at most


def test_training_mode_and_a_broken_runtime(monkeypatch, tmp_path):
    model = made("gpt2")  # has dropout
    model.net.train()
    assert exports.write(model, tmp_path / "out", "hf")["distance"] == 0.0 and model.net.training
    from trainlore.exports import hf

    monkeypatch.setattr(hf, "logits", lambda *given: (torch.full((16, 32, 400), float("nan")), 1.0))
    with pytest.raises(Bad, match=r"gives other outputs in its runtime \(relative distance nan"):
        exports.write(model, tmp_path / "other", "hf")
    with torch.no_grad():
        model.net.transformer.h[0].ln_1.bias[0] = float("inf")
    with pytest.raises(Bad, match="the model itself gives infinities or NaN"):
        exports.write(model, tmp_path / "other", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_half_precision_is_compared_with_itself(tmp_path, without_llama):
    model = made("gpt2", n_layer=1)
    model.net.bfloat16()
    for form in ("hf", "gguf"):
        record = exports.write(model, tmp_path / form, form)
        assert record["distance"] <= record["tolerance"] < 0.1


# ---- compressed-tensors


@pytest.mark.parametrize(
    ("fields", "bits"),
    [
        ({"bits": 4, "per": 32, "symmetric": False}, 4),
        ({"bits": 4, "per": 32}, 4),
        ({"bits": 3, "per": "channel", "symmetric": False}, 3),
        ({"bits": 8, "per": "channel"}, 8),
    ],
)
def test_packed_weights_are_the_ones_that_were_measured(fields, bits, tmp_path):
    model = rounded(made("grouped"), **fields)
    record = exports.write(model, tmp_path / "out", "compressed-tensors")
    assert record["distance"] < 1e-4
    from safetensors.torch import load_file

    state = load_file(tmp_path / "out" / "model.safetensors")
    packed = {k: v for k, v in state.items() if k.endswith("weight_packed")}
    assert len(packed) == len(model.grids) == 14 and "lm_head.weight" not in state  # tied: stored once
    sizes = sum(v.numel() * v.element_size() for v in packed.values())
    assert sizes == sum(model.net.get_submodule(p).weight.numel() for p in model.grids) * bits / 8
    # transformers makes room for zero points in another shape than the library packs them in
    assert record["runtime"].startswith("compressed-tensors" if fields.get("symmetric") is False else "transformers")


def test_floats_of_8_bits_and_a_net_that_looks_at_its_weights(tmp_path):
    from trainlore.primitives.grids import settle
    from trainlore.primitives.masks import matrices, weight_of

    model = made("qwen2")
    for path, layer in matrices(model.net).items():
        grid = Grid.of(weight_of(layer), "e4m3", "channel")
        settle(model, path, layer, grid.round(weight_of(layer)), grid)
    assert exports.write(model, tmp_path / "out", "compressed-tensors")["distance"] < 1e-4
    with pytest.raises(Bad, match="q_proj, of 64 inputs, is in e4m3 per channel; gguf holds .* use compressed-tensors"):
        exports.write(model, tmp_path / "other", "gguf")
    with pytest.raises(Bad, match=r"T5ForConditionalGeneration does not run with packed layers .*: use hf"):
        exports.write(rounded(preset("t5-4m", vocab=300, num_layers=1)), tmp_path / "other", "compressed-tensors")


def test_two_formats_in_one_model(tmp_path):
    model = rounded(made("llama"), symmetric=False, targets=("q_proj", "k_proj"))
    model = rounded(model, bits=8, per="channel", targets=("down_proj",))
    assert exports.write(model, tmp_path / "out", "compressed-tensors")["distance"] < 1e-4
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert len(config["config_groups"]) == 2 and "lm_head" in config["ignore"]


def test_a_weight_written_to_since_is_not_packed(tmp_path):
    model = rounded(made("llama"))
    with torch.no_grad():
        for path in list(model.grids)[1:]:
            model.net.get_submodule(path).weight.mul_(1.003)
    exports.write(model, tmp_path / "out", "compressed-tensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == [next(iter(model.grids))]


def test_blocks_of_different_sizes_go_where_they_can_be_read(tmp_path):
    from trainlore.primitives.shrinking import shrink

    model = shrink(made("llama"), [None, None], [list(range(64)), None])
    for form in ("gguf", "compressed-tensors"):
        with pytest.raises(Bad, match="blocks (are )?of different sizes.*use hf or onnx"):
            exports.write(model if form == "gguf" else rounded(model), tmp_path / "out", form)
    assert exports.write(model, tmp_path / "out", "hf")["distance"] == 0.0


# ---- safetensors with masks


def test_zeros_are_left_out_and_come_back(tmp_path):
    model = Magnitude(keep=0.3, tolerance=99.0)(made("llama"))
    record = exports.write(model, tmp_path / "out", "masked")
    assert record["distance"] == 0.0
    from trainlore.exports.masked import read

    state = read(tmp_path / "out")
    assert all(torch.equal(v, state[k]) for k, v in model.net.state_dict().items() if k in state)
    plain = exports.write(model, tmp_path / "plain", "hf")
    assert record["bytes"] < 0.8 * plain["bytes"]


# ---- GGUF

HELD = {  # what our grids become
    "int2": "Q4_0", "int3": "Q4_0", "int4": "Q4_0", "uint2": "Q4_1", "uint4": "Q4_1", "int5": "Q5_0", "uint5": "Q5_1",
    "int6": "Q8_0", "int8": "Q8_0", "uint6": "Q8_0", "uint7": "Q8_0",
}  # fmt: skip


@pytest.mark.parametrize("per", [32, 64, "channel", "tensor"])
@pytest.mark.parametrize(("form", "kind"), HELD.items())
def test_gguf_holds_the_codes_themselves(form, kind, per):
    from trainlore.exports.gguf import _blocks, _kind

    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    grid = Grid.of(weight, form, per)
    values = grid.round(weight)
    found = _kind("x", grid, 96)
    assert found.name == kind
    raw = _blocks(values, grid, found)
    assert raw.shape == (6, 3 * gguf.GGML_QUANT_SIZES[found][1])
    np.testing.assert_allclose(gguf.quants.dequantize(raw, found), values.numpy(), atol=4e-3)


def test_gguf_of_many_widths_and_of_large_values(tmp_path, without_llama):
    model = made("llama")
    for bits, target in ((2, "q_proj"), (3, "k_proj"), (5, "o_proj"), (6, "up_proj"), (8, "down_proj")):
        model = rounded(model, bits=bits, targets=(target,))
    with torch.no_grad():
        model.net.lm_head.weight[5] = 1e5  # beyond float16
    record = exports.write(model, tmp_path / "out", "gguf")
    assert record["distance"] < 0.01
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    assert kinds["output.weight"] == "F32" and kinds["token_embd.weight"] == "F16"
    assert [kinds[f"blk.1.{n}.weight"] for n in ("attn_q", "attn_output", "ffn_up")] == ["Q4_0", "Q5_0", "Q8_0"]


def test_the_gate_sees_queries_in_the_wrong_order(monkeypatch, tmp_path):
    from trainlore.exports import gguf as writing

    monkeypatch.setattr(writing, "_order", lambda path, rows, config: slice(None))
    with pytest.raises(Bad, match="gives other outputs in its runtime"):
        exports.write(made("llama"), tmp_path / "out", "gguf")


def test_a_tokenizer_that_llama_cpp_would_not_follow(tmp_path):
    from tokenizers import pre_tokenizers

    model = made("llama")
    inside = model.tokenizer.backend_tokenizer
    inside.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(Bad, match=r"cuts text otherwise than this tokenizer \(Punctuation, then ByteLevel\): use hf"):
        exports.write(model, tmp_path / "out", "gguf")
    model.tokenizer = None
    with pytest.raises(Bad, match="needs the model's tokenizer"):
        exports.write(model, tmp_path / "out", "gguf")


class Stub:
    """Stands for llama_cpp.Llama: reads the file with transformers, and says what it was asked."""

    asked: list = []

    def __init__(self, path, **how):
        self.net = transformers.AutoModelForCausalLM.from_pretrained(
            str(path).rpartition("/")[0], gguf_file="model.gguf", dtype=torch.float32
        )
        self.words, self.how = two_domains.tokenizer(), how

    def reset(self):
        self.scores = None

    def eval(self, ids):
        Stub.asked.append(ids)
        with torch.no_grad():
            self.scores = self.net(torch.tensor([ids])).logits[0].numpy()

    def tokenize(self, text, add_bos, special):
        return self.words(text.decode(), add_special_tokens=add_bos)["input_ids"]

    def close(self):
        pass


def test_how_llama_cpp_is_asked(monkeypatch, tmp_path):
    """Without the runtime itself: the very ids, padding left out, and what it refuses said."""
    monkeypatch.setitem(__import__("sys").modules, "llama_cpp", types.SimpleNamespace(Llama=Stub, __version__="stub"))
    monkeypatch.setattr(running, "installed", lambda: True)
    model = rounded(made("qwen2"))
    Stub.asked.clear()
    record = exports.write(model, tmp_path / "out", "gguf", data=Data.of(["gala bese", "gala bese kami tuve " * 4]))
    assert record["runtime"] == "llama-cpp-python stub" and record["distance"] < 0.01 < record["tolerance"]
    eos = model.tokenizer.eos_token_id
    assert Stub.asked[0] == [*model.tokenizer("gala bese", add_special_tokens=False)["input_ids"], eos]
    monkeypatch.setattr(Stub, "tokenize", lambda self, text, **how: [1, 2, 3])
    with pytest.raises(Bad, match=r"llama.cpp reads .* as \[1, 2, 3\].*: use hf"):
        exports.write(model, tmp_path / "other", "gguf")

    def broken(self, path, **how):
        raise ValueError("Failed to load model from file")

    monkeypatch.setattr(Stub, "__init__", broken)
    with pytest.raises(Bad, match="llama.cpp does not load what was written"):
        exports.write(model, tmp_path / "other", "gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


RUN = [
    ("llama", None, "F16"),
    ("grouped", None, "F16"),
    ("qwen2", None, "F16"),
    ("gpt2", None, "F16"),
    ("llama", {"bits": 8}, "Q8_0"),
    ("grouped", {"bits": 4}, "Q4_0"),
    ("qwen2", {"bits": 4, "symmetric": False}, "Q4_1"),
    ("gpt2", {"bits": 5}, "Q5_0"),
    ("grouped", {"bits": 5, "symmetric": False, "per": "channel"}, "Q5_1"),
    ("qwen2", {"bits": 3, "per": 64}, "Q4_0"),
]


@pytest.mark.parametrize(("net", "fields", "kind"), RUN)
def test_llama_cpp_runs_what_was_written(net, fields, kind, tmp_path):
    pytest.importorskip("llama_cpp", reason="pip install 'trainlore[export-gguf]' compiles llama-cpp-python")
    model = made(net) if fields is None else rounded(made(net), **fields)
    record = exports.write(model, tmp_path / "out", "gguf", data=Data.of(two_domains.make(8, seed=5, domains=("a",))))
    assert record["runtime"].startswith("llama-cpp-python") and record["rows"]["whose"] == "given"
    assert kind in {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "out" / "model.gguf").tensors}
    if fields is None:
        assert record["distance"] < 2e-3 < record["tolerance"] == 0.01
    assert record["distance"] <= record["tolerance"] < 0.06


def test_llama_cpp_reads_the_inputs_of_packed_layers_in_8_bits(tmp_path):
    """Where nothing before the packed layers differs, our own net made to read so is as near as 16 bits allow."""
    pytest.importorskip("llama_cpp", reason="pip install 'trainlore[export-gguf]' compiles llama-cpp-python")
    model = made("grouped")
    with torch.no_grad():
        words = model.net.model.embed_tokens.weight
        words.copy_(words.half())
    model = rounded(model, bits=8, targets=tuple(f"layers.0.self_attn.{n}_proj" for n in "qkv"))
    exports.write(model, tmp_path / "out", "gguf")
    batch, _ = rows.rows_for(model)
    theirs, _ = running.run(tmp_path / "out" / "model.gguf", batch, model)
    with torch.no_grad():
        plain = exports.distance(model(batch), theirs)
        for path in model.grids:
            model.net.get_submodule(path).register_forward_pre_hook(
                lambda _, args: (running.rounded(args[0]), *args[1:])
            )
        so = exports.distance(model(batch), theirs)
    assert so < 2e-3 and so < 0.3 * plain


@pytest.mark.parametrize("name", ["qwen2", "llama-bpe"])
def test_llama_cpp_cuts_text_as_the_tokenizer_does(name, tmp_path):
    pytest.importorskip("llama_cpp", reason="pip install 'trainlore[export-gguf]' compiles llama-cpp-python")
    from tokenizers import Tokenizer

    from trainlore.exports.gguf import SPLITS

    model = made("llama", num_hidden_layers=1)
    table = json.loads(model.tokenizer.backend_tokenizer.to_str())
    regex = next(r for r, called in SPLITS.items() if called == name)
    cut = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    table["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [cut, last]}
    table["model"]["ignore_merges"] = name == "llama-bpe"
    names = {f"{n}_token": f"<{n}>" for n in ("pad", "bos", "eos")}
    model.tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)), **names
    )
    record = exports.write(model, tmp_path / "out", "gguf")
    assert record["distance"] < 0.01
    words = gguf.GGUFReader(tmp_path / "out" / "model.gguf").get_field("tokenizer.ggml.pre")
    assert words.contents() == name
