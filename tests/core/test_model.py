"""Model: the networks people have, run, trained, saved and loaded again, and what they make of rows of text."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers as hf

from trainlore import exports
from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.readiness import prepared
from trainlore.runs import Run
from trainlore.worlds import two_domains

SHAPE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
BERT = {"vocab_size": 384, "max_position_embeddings": 64, **SHAPE}


def net(name):
    with Run(0).global_rng("weights"):
        if name == "llama":
            return hf.LlamaForCausalLM(hf.LlamaConfig(num_key_value_heads=1, **SPECIAL, **BERT))
        if name == "gpt2":
            return hf.GPT2LMHeadModel(
                hf.GPT2Config(vocab_size=384, n_embd=16, n_layer=2, n_head=2, n_positions=64, **SPECIAL)
            )
        if name == "qwen2":
            return hf.Qwen2ForCausalLM(hf.Qwen2Config(num_key_value_heads=2, **SPECIAL, **BERT))
        if name == "masked":
            return hf.BertForMaskedLM(hf.BertConfig(**BERT))
        if name == "classes":
            return hf.BertForSequenceClassification(hf.BertConfig(num_labels=3, **BERT))
        if name == "t5":
            return hf.T5ForConditionalGeneration(
                hf.T5Config(
                    vocab_size=384,
                    d_model=16,
                    d_kv=8,
                    d_ff=32,
                    num_layers=2,
                    num_heads=2,
                    decoder_start_token_id=0,
                    eos_token_id=2,
                )
            )
        return hf.ViTForImageClassification(
            hf.ViTConfig(image_size=8, patch_size=4, num_channels=1, num_labels=3, **SHAPE)
        )


BLOCKS = {
    "llama": "LlamaDecoderLayer", "gpt2": "GPT2Block", "qwen2": "Qwen2DecoderLayer", "masked": "BertLayer",
    "classes": "BertLayer", "t5": "T5Block", "vit": "ViTLayer",
}  # fmt: skip
HOW = {"steps": 3, "batch_size": 8, "lr": 1e-2, "precision": "fp32"}
KINDS = {
    "llama": "causal",
    "gpt2": "causal",
    "qwen2": "causal",
    "masked": "masked",
    "classes": "classifier",
    "t5": "seq2seq",
    "vit": "classifier",
}


@pytest.fixture(scope="module")
def tokenizer():
    return two_domains.tokenizer()


def rows(name):
    texts = [" ".join(t.split()[:6]) for t in Data(two_domains.make(16, seed=0)).text()]
    if name == "t5":
        return Data.of({"prompt": texts, "completion": [t[:9] for t in texts]})
    if name == "vit":
        pixels = np.random.default_rng(0).random((16, 1, 8, 8)).astype(np.float32)
        return Data.of({"pixel_values": pixels, "label": np.arange(16) % 3})
    return Data.of({"text": texts, "label": np.arange(16) % 3} if name == "classes" else {"text": texts})


def plain(name, own, batch):
    """The network called as its documentation says, without us."""
    if name == "vit":
        return own(pixel_values=batch["pixel_values"]).logits
    given = {k: batch[k] for k in ("input_ids", "attention_mask")}
    if name == "t5":
        start = torch.zeros(len(batch["row"]), 1, dtype=torch.long)
        given["decoder_input_ids"] = torch.cat([start, batch["labels"][:, :-1].clamp(min=0)], 1)
    return own(**given).logits


@pytest.mark.parametrize("name", list(BLOCKS))
def test_a_network_of_transformers_is_run_trained_saved_and_loaded(name, tokenizer, tmp_path):
    own = net(name).eval()
    model = Model.of(own)
    assert model.kind == KINDS[name] and model.net is own
    model.tokenizer = None if name == "vit" else tokenizer
    assert {type(b).__name__ for b in model.blocks} == {BLOCKS[name]} and len(model.blocks) == 2
    data = prepared(model, rows(name), False)
    batch = data.batch([0, 3, 5], model)
    with torch.no_grad():
        logits = model(batch)
        assert torch.equal(logits, plain(name, own, batch))

    twin, print_ = model.copy(), model.fingerprint
    assert twin.fingerprint == print_ and twin.net is not own
    trained = Run(0).fit(twin, rows(name), **HOW)
    losses = trained.about["curve"]["loss"]
    assert len(set(losses)) == 3 and all(np.isfinite(losses)) and trained.fingerprint != print_
    with torch.no_grad():
        assert torch.equal(model(batch), logits) and model.fingerprint == print_  # the original was not touched
        assert not torch.equal(trained(batch), logits)

    trained.save(tmp_path / "m")
    back = Model.of(str(tmp_path / "m"))
    assert (
        back.kind == trained.kind and back.fingerprint == trained.fingerprint and back.about["curve"]["loss"] == losses
    )
    with torch.no_grad():
        assert torch.equal(back(batch), trained(batch))
    assert not list(tmp_path.glob("*.part"))

    stopped = Run(0).fit(model.copy(), rows(name), until=2, folder=tmp_path / "checkpoints", **HOW)
    gone_on = Run(0).fit(model.copy(), rows(name), folder=tmp_path / "checkpoints", **HOW)
    assert stopped.fingerprint != gone_on.fingerprint == trained.fingerprint
    assert exports.write(gone_on, tmp_path / "plain", "hf")["distance"] < 1e-5
    if back.tokenizer is not None:
        text = "kamu don't 12345  x\n\nÅ <eos>"
        assert back.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_training_learns_a_row_by_heart(tokenizer):
    model = Model(net("llama"), "causal", tokenizer)
    fitted = Run(0).fit(model, Data.of(["kamu gale nera bidu"] * 4), steps=40, batch_size=4, lr=3e-2, precision="fp32")
    assert fitted.about["curve"]["loss"][-1] < 0.1 < fitted.about["curve"]["loss"][0]
    assert Run(0).generate(fitted, ["kamu gale"], new=12, temperature=0)[0].strip().startswith("nera bidu")


def test_a_fingerprint_changes_with_a_weight_and_with_what_is_trained(tokenizer):
    model = Model.of(net("llama"))
    prints = {model.fingerprint}
    with torch.no_grad():
        next(model.net.parameters())[0, 0] += 1e-3
    prints.add(model.fingerprint)
    next(model.net.parameters()).requires_grad_(False)
    prints.add(model.fingerprint)
    model.tokenizer = tokenizer
    prints.add(model.fingerprint)
    model.kind = "encoder"
    assert len(prints | {model.fingerprint}) == 5


def test_a_kind_that_the_class_does_not_say_is_kept(tokenizer, tmp_path):
    Model(net("classes"), "regressor", tokenizer).save(tmp_path / "m")
    assert Model.of(tmp_path / "m").kind == "regressor"
    as_classes = Model.of(tmp_path / "m", kind="classifier", seed=3)
    assert as_classes.kind == "classifier" and as_classes.net.config.num_labels == 3
    assert as_classes.fingerprint == Model.of(tmp_path / "m", kind="classifier", seed=3).fingerprint


# ---- saving and loading go wrong in words


def test_folders_that_hold_no_model_are_refused(tmp_path):
    good = Model.of(net("llama")).save(tmp_path / "good")
    config, weights = (good / "config.json").read_bytes(), (good / "model.safetensors").read_bytes()

    def folder(name, **files):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file.replace("__", ".")).write_bytes(content)
        return str(tmp_path / name)

    from safetensors.torch import load, save

    fewer = load(weights)
    fewer.pop("model.layers.1.mlp.up_proj.weight")
    wider = {k: torch.zeros(3, *v.shape[1:]) if "norm" in k else v for k, v in load(weights).items()}
    cases = {
        folder("empty"): "has no config.json",
        folder("weightless", config__json=config): r"a config but no weights \(no \*.safetensors\)",
        folder(
            "pickled", config__json=config, pytorch_model__bin=b"\x80"
        ): r"pickled weights \(pytorch_model.bin\), which can run code",
        folder(
            "adapter", adapter_config__json=b"{}", adapter_model__safetensors=weights
        ): "adapters of peft, not a model",
        folder("garbled", config__json=b"{", model__safetensors=weights): "the config of .* does not load",
        folder(
            "strange", config__json=b'{"model_type": "nope"}', model__safetensors=weights
        ): "the config of .* does not load",
        folder("cut", config__json=config, model__safetensors=weights[:900]): "does not load",
        folder(
            "fewer", config__json=config, model__safetensors=save(fewer)
        ): "1 weights are not in its files, model.layers.1.mlp.up_proj",
        folder("wider", config__json=config, model__safetensors=save(wider)): "does not load",
        str(tmp_path / "nowhere"): "there is no such folder",
        str(good / "config.json"): "is a file: a model is a folder",
        "llama-2m": r"did you mean llama-.*hub:llama-2m",
    }
    for source, says in cases.items():
        with pytest.raises(Bad, match=says):
            Model.of(source)


@pytest.mark.parametrize("name", ["Nobody/Qwen2.5-0.5B", "hub:Nobody/Llama-3.2-1B", "hub:gpt-nobody"])
def test_ids_of_the_hub_are_asked_for_there(name):
    with pytest.raises(Bad, match="the Hub did not give it"):
        Model.of(name)


def test_saving_replaces_models_only_and_leaves_no_halves(tmp_path, monkeypatch):
    model = Model.of(net("llama"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(Bad, match="is no model saved by trainlore"):
        model.save(tmp_path / "mine")
    model.save(tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()

    def full(self, folder, **how):
        (folder / "half").write_text("x")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hf.PreTrainedModel, "save_pretrained", full)
    for place in ("m", "new"):
        with pytest.raises(Bad, match="the disk is full"):
            model.save(tmp_path / place)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "mine"]
    with pytest.raises(Bad, match="Linear is not a Hugging Face model"):
        Model.of(torch.nn.Linear(2, 2)).save(tmp_path / "linear")


def test_a_network_that_is_not_what_its_config_says_is_not_saved_as_if_it_were(tmp_path):
    model = Model.of(net("llama"))
    model.net.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.net.model.layers[0].mlp.up_proj)
    with pytest.raises(Bad, match="no longer what its config says.*up_proj.*`fold`"):
        model.save(tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_presets_are_named_by_their_seed():
    from trainlore.nouns.hugging import preset

    assert preset("mlp", seed=1).fingerprint == preset("mlp", seed=1).fingerprint != preset("mlp", seed=2).fingerprint
    one = preset("vit-digits", num_hidden_layers=1)
    assert len(one.blocks) == 1 and one.net.config.num_labels == 10
    assert preset("llama-1m", num_key_value_heads=2, num_hidden_layers=1, vocab=64).net.config.num_key_value_heads == 2


# ---- encoding


@pytest.fixture(scope="module")
def llama(tokenizer):
    return Model(net("llama"), "causal", tokenizer)


def lists(data, name):
    values, offsets = data.lists(name)
    return [values[a:b].tolist() for a, b in pairwise(offsets)]


def test_text_is_learned_whole_and_ends(llama, tokenizer):
    data = llama.encode(Data.of({"text": ["kamu gale", ""], "label": [1, 0]}))
    want = [[*tokenizer("kamu gale")["input_ids"], 2], [2]]
    assert lists(data, "input_ids") == lists(data, "labels") == want  # a class of the row is no reason not to learn it
    assert data["label"].tolist() == [1, 0]


def test_prompts_are_not_learned_and_answers_are_to_the_token(llama, tokenizer):
    data = llama.encode(Data.of({"prompt": ["kamu gale", "a"], "completion": [" nera", ""]}))
    q, a = tokenizer("kamu gale")["input_ids"], tokenizer(" nera")["input_ids"]
    assert lists(data, "input_ids") == [[*q, *a, 2], [*tokenizer("a")["input_ids"], 2]]
    assert lists(data, "labels") == [[-100] * len(q) + [*a, 2], [-100, 2]]
    pairs = llama.encode(Data.of({"prompt": ["kamu"], "chosen": [" gale"], "rejected": [" nera bidu"]}))
    for side, said in (("chosen", " gale"), ("rejected", " nera bidu")):
        p, s = tokenizer("kamu")["input_ids"], tokenizer(said)["input_ids"]
        assert lists(pairs, f"{side}_input_ids") == [[*p, *s, 2]] and lists(pairs, f"{side}_labels") == [
            [-100] * len(p) + [*s, 2]
        ]


TEMPLATE = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
CHAT = [
    {"role": "user", "content": "kamu"},
    {"role": "assistant", "content": "gale nera"},
    {"role": "user", "content": "bidu"},
    {"role": "assistant", "content": "tovi"},
]


def test_of_a_chat_only_what_assistants_say_is_learned(tokenizer):
    tok = two_domains.tokenizer()
    model = Model(net("llama"), "causal", tok)
    with pytest.raises(Bad, match="no chat template: set tokenizer.chat_template"):
        model.encode(Data.of({"messages": [CHAT]}))
    tok.chat_template = TEMPLATE
    data = model.encode(Data.of({"messages": [CHAT, CHAT[:1]]}))
    ids, labels = lists(data, "input_ids"), lists(data, "labels")
    assert tok.decode(ids[0]) == "[user]kamu<eos>[assistant]gale nera<eos>[user]bidu<eos>[assistant]tovi<eos>"
    learned = [t if t != -100 else None for t in labels[0]]
    runs = "".join(tok.decode([t]) if t is not None else "|" for t in learned)
    assert [r for r in runs.split("|") if r] == ["gale nera<eos>", "tovi<eos>"]
    assert set(labels[1]) == {-100}
    fitted = Run(0).fit(model, data, steps=2, batch_size=2, precision="fp32")  # the column of messages stays behind
    assert np.isfinite(fitted.about["curve"]["loss"]).all()


def test_label_rows_keep_their_class(tokenizer):
    data = prepared(Model(net("classes"), "classifier", tokenizer), rows("classes"), False)
    batch = data.batch([0, 1])
    assert batch["labels"].tolist() == [0, 1] and batch["input_ids"].dim() == 2


def test_rows_longer_than_the_window_name_themselves_and_the_way_out(llama):
    words = " ".join(["kamu"] * 100_000)
    data = Data.of(["short", words, "x"]).take([2, 1, 0])
    with pytest.raises(
        Bad,
        match=r"row 1 has \d{3},\d{3} tokens, the model's window is 64: .*even_pieces.*best_fit_packing.*truncate: true",
    ):
        llama.encode(data)
    assert [len(r) for r in lists(llama.encode(data, truncate=True), "input_ids")] == [
        2,
        64,
        len(llama.tokenizer("short")["input_ids"]) + 1,
    ]
    asked = llama.encode(Data.of({"prompt": [words], "completion": [" gale"]}), truncate=True)
    assert len(lists(asked, "input_ids")[0]) == 64 and lists(asked, "labels")[0][-3:-1] != [
        -100,
        -100,
    ]  # the answer is kept
    with pytest.raises(Bad, match="window is 4"):
        llama.encode(Data.of(["kamu gale nera bidu tovi"]), window=4)


def test_what_cannot_be_encoded_says_so(llama):
    for model, data, says in (
        (llama, Data.of({"txt": ["a"]}), "nothing to encode: there is no `text`.*there are txt"),
        (llama, Data.of(["a"]).take([]), "no rows to encode"),
        (Model.of(net("llama")), Data.of(["a"]), "has no tokenizer: give one, or train one with `bpe`"),
        (Model.of(net("vit")), Data.of(["a"]), "reads pixel_values, not text"),
        (llama, Data.of({"text": [1, 2]}), "column 'text' holds int64, not text"),
    ):
        with pytest.raises(Bad, match=says):
            model.encode(data)


def test_empty_rows_train_to_finite_numbers(llama, tokenizer):
    for name in ("llama", "classes"):
        model = Model(net(name), KINDS[name], tokenizer)
        data = rows(name).take(range(4)).with_(text=["", "kamu", "", ""])
        fitted = Run(0).fit(model, data, steps=2, batch_size=4, precision="fp32")
        assert np.isfinite(fitted.about["curve"]["loss"]).all()
        assert all(v.isfinite().all() for v in fitted.net.state_dict().values() if v.is_floating_point())


def test_trainlore_json_of_a_model_is_json(llama, tmp_path):
    llama.save(tmp_path / "m", card="# mine\n")
    assert json.loads((tmp_path / "m" / "trainlore.json").read_text())["kind"] == "causal"
    assert (tmp_path / "m" / "README.md").read_text() == "# mine\n"
    assert pa.types.is_large_list(llama.encode(Data.of(["a"])).table["input_ids"].type)


def test_a_model_whose_blocks_differ_is_saved_stored_and_loaded(tmp_path):
    from trainlore.methods.compress.prune.ziplm import ZipLM
    from trainlore.store import Store
    from trainlore.worlds.tiny import world

    at = world("text")
    small = ZipLM(speedup=1.6, rows=16, by="work", tolerance=99.0)(at["teacher"].copy(), at["data"])
    assert small.size < at["teacher"].size
    ids = {"input_ids": torch.arange(2, 12)[None], "attention_mask": torch.ones(1, 10).long()}
    want = small(ids)
    Store(tmp_path / "store").put("key", small, {"record": {}})
    for other in (Model.of(str(small.save(tmp_path / "m"))), Store(tmp_path / "store").get("key")):
        assert other.size == small.size
        torch.testing.assert_close(other(ids), want)
