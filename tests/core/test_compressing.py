"""The search for the smallest form: on real text, judged on rows it never calibrated with, and honest where it fails."""

from __future__ import annotations

import json

import pytest

from trainlore import compressing
from trainlore.cli import main
from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.masks import weight_of
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world


@pytest.fixture(scope="module")
def grown():
    """A small Llama that learned some text, so that its weights matter."""
    at = world("text")
    tokenizer = at["teacher"].tokenizer
    net = preset("llama-1m", vocab=max(320, len(tokenizer)), window=64, num_hidden_layers=2).net
    model = Model(net, "causal", tokenizer)
    return Run(0).fit(model, at["data"], steps=30, batch_size=16, lr=3e-3, precision="fp32", truncate=True), at["data"]


def test_the_smallest_within_the_goal(grown, tmp_path):
    model, data = grown
    record = compressing.compress(model, data, "4bit", "loss +5 %", tmp_path / "out", rows=16)
    assert {p["method"] for p in record["points"]} == {"nearest", "gptq", "awq"}
    within = [p for p in record["points"] if p["within"]]
    best = min(within, key=lambda p: p["bytes"])
    assert record["chosen"] == best["name"] and best["change"] + 1.645 * best["stderr"] <= record["allowed"]
    assert any(len(set(p["bits"].values())) > 1 for p in record["points"])  # bits a layer were tried
    back = Model.of(str(tmp_path / "out" / "model"))
    assert back.grids.keys() == best["bits"].keys()
    for path, grid in back.grids.items():
        assert grid.bits == best["bits"][path] and grid.holds(weight_of(back.net.get_submodule(path)))
    assert compressing.bytes_of(back) == best["bytes"] < record["bytes_before"]
    pytest.importorskip("gguf")
    from trainlore import exports

    packed = exports.write(back, tmp_path / "packed", "gguf", data=data.take(range(16)))  # bits a layer, in one file
    assert packed["distance"] <= packed["tolerance"] < 0.1 and packed["bytes"] < packed["bytes_before"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and best["name"] in page
    front = [p for p in record["points"] if p["name"] in record["front"]]
    for p in front:
        assert not any(o["bytes"] < p["bytes"] and o["change"] < p["change"] for o in record["points"])


def test_a_goal_that_cannot_be_met_says_how_near_it_came(grown, tmp_path):
    model, data = grown
    with pytest.raises(Bad, match=r"no form of at most 2 bits keeps .* the nearest, \w+ 2 bits, costs \+"):
        compressing.compress(model, data, "2bit", "loss +0.0001", tmp_path / "out", rows=16)
    assert not list(tmp_path.iterdir())


def test_goals_and_bits_as_people_write_them():
    assert compressing.goal_of("loss +1 %", 3.0) == pytest.approx(0.03)
    assert compressing.goal_of("loss+0.02", 3.0) == 0.02
    assert compressing.bits_of("4bit") == 4 and compressing.bits_of("3.5 bits") == 3.5
    for wrong in ("accuracy +1", "loss 1 %", "loss +x"):
        with pytest.raises(Bad, match="goal"):
            compressing.goal_of(wrong, 1.0)
    for wrong in ("four", "1bit", "9bit"):
        with pytest.raises(Bad, match="--to"):
            compressing.bits_of(wrong)


def test_from_the_command_line(grown, tmp_path, monkeypatch, capsys):
    model, data = grown
    model.copy().save(tmp_path / "whole")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in list(data.text("text"))[:64]))
    monkeypatch.chdir(tmp_path)
    call = [
        "compress",
        "whole",
        "--data",
        "rows.jsonl",
        "--out",
        "small",
        "--to",
        "3bit",
        "--goal",
        "loss +5 %",
        "--rows",
        "8",
    ]
    assert said(monkeypatch, *call) == 0 and "MB instead of" in capsys.readouterr().out
    pytest.importorskip("compressed_tensors")
    assert said(monkeypatch, "export", "small/model", "--to", "packed", "--format", "compressed-tensors") == 0
    assert (tmp_path / "packed" / "model.safetensors").exists() and "tokens a second" in capsys.readouterr().out
    assert said(monkeypatch, *call) == 2 and "small exists" in capsys.readouterr().err


# ---- what cannot be compressed, or not well


def a_tiny(name, hidden=32, **more):
    """A net of one block whose loss on the texts is that of chance, and rows for it."""
    import torch
    import transformers as hf

    words = dict(vocab_size=400, max_position_embeddings=64)
    sizes = dict(hidden_size=hidden, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = {
            "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**words, **sizes, **more)),
            "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**words, **sizes, num_key_value_heads=1)),
            "gpt2": lambda: hf.GPT2LMHeadModel(
                hf.GPT2Config(vocab_size=400, n_embd=hidden, n_layer=1, n_head=2, n_positions=64)
            ),
            "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**words, **sizes, num_labels=2)),
            "vit": lambda: hf.ViTForImageClassification(
                hf.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=10, **sizes)
            ),
        }[name]()
    model = Model.of(net.eval())
    model.tokenizer = two_domains.tokenizer() if name != "vit" else None
    rows = two_domains.make(24, seed=2, domains=("a", "b"))
    return model, Data.of({"text": rows["text"].to_pylist(), **({"label": [0, 1] * 12} if name == "bert" else {})})


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "bert"])
def test_every_family_and_where_its_result_can_go(name, tmp_path):
    model, data = a_tiny(name)
    record = compressing.compress(model, data, "2bit", "loss +400 %", tmp_path / "out", rows=8)
    back = Model.of(str(tmp_path / "out" / "model"))
    assert len(record["points"]) == 2 + (name != "gpt2" or "awq" in {p["method"] for p in record["points"]})
    assert back.grids and all(grid.bits == 2 for grid in back.grids.values())
    pytest.importorskip("compressed_tensors")
    from trainlore import exports

    form = "gguf" if name == "gpt2" else "compressed-tensors"
    assert exports.write(back, tmp_path / "packed", form)["bytes"] > 0


def broken(model):
    import torch

    with torch.no_grad():
        next(m for m in model.net.modules() if isinstance(m, torch.nn.Linear)).weight[0, 0] = float("inf")
    return model


def half(model):
    from trainlore.methods.compress.quantize.nearest import Nearest

    return Nearest(bits=4, per=32, tolerance=99.0)(model)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda m, d: (half(m), d), "is quantized already: start from the model before that"),
        (lambda m, d: (broken(m), d), "holds infinities or NaN: the model is broken before it is compressed"),
        (lambda m, d: (a_tiny("llama", hidden=48)[0], d), "has inputs that groups of 32 do not divide"),
        (lambda m, d: (a_tiny("vit")[0], d), "has inputs that groups of 32 do not divide"),
        (lambda m, d: (m, d.take(range(15))), "15 rows are too few"),
        (lambda m, d: (m, d.take([])), "0 rows are too few"),
        (lambda m, d: (m, Data.of({"price": [1.0] * 24})), "text"),
        (lambda m, d: (Model(m.net, "encoder", m.tokenizer), d), "kind encoder has no loss of its own"),
    ],
)
def test_what_cannot_be_compressed_is_said_and_nothing_is_written(how, said, tmp_path):
    model, data = how(*a_tiny("llama"))
    with pytest.raises(Bad, match=said):
        compressing.compress(model, data, "2bit", "loss +400 %", tmp_path / "out", rows=8)
    assert not list(tmp_path.iterdir())


def test_dead_inputs_tied_words_and_fewer_rows_than_asked_for(tmp_path):
    import torch

    model, data = a_tiny("llama", tie_word_embeddings=True)
    block = model.net.model.layers[0]
    with torch.no_grad():
        block.mlp.up_proj.weight[:40] = 0.0  # neurons that never fire
        block.input_layernorm.weight[:] = 0.0  # and inputs that are always zero
    record = compressing.compress(model, data, "2bit", "loss +400 %", tmp_path / "out", rows=500)
    assert record["rows"] == {"calibration": 18, "judge": 6}
    back = Model.of(str(tmp_path / "out" / "model"))
    assert back.net.lm_head.weight is back.net.model.embed_tokens.weight and "lm_head" not in back.grids
    assert all(p.isfinite().all() for p in back.net.parameters())


def said(monkeypatch, *words):
    """What the command line ends with."""
    monkeypatch.setattr("sys.argv", ["trainlore", *words])
    try:
        main()
    except SystemExit as left:
        return left.code or 0
    return 0
