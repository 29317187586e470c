from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.bitfit import BitFit, is_bias
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

BERT = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def trained(model: Model) -> list[str]:
    return [name for name, p in model.net.named_parameters() if p.requires_grad]


def bert() -> Model:
    return Model.of(hf.BertForSequenceClassification(hf.BertConfig(**BERT)))


def test_biases_and_named_weights_are_trained_and_nothing_else():
    model = BitFit(trainable=("classifier.weight",))(Run(0), bert())
    expected = [n for n, _ in model.net.named_parameters() if n.split(".")[-1] == "bias"] + ["classifier.weight"]
    assert sorted(trained(model)) == sorted(expected)


def test_the_two_kinds_of_the_paper_are_half_of_the_biases():
    """BERT's biases in a layer: q, k, v, output and two norms of d, the middle one of 4 d, the last of d."""
    model = BitFit(kinds=("query", "intermediate"))(
        Run(0), Model.of(hf.BertModel(hf.BertConfig(**{**BERT, "intermediate_size": 64})))
    )
    some = sum(p.numel() for p in model.net.parameters() if p.requires_grad)
    layers = [p for n, p in model.net.named_parameters() if is_bias(n) and ".layer." in n]
    assert (some, sum(p.numel() for p in layers)) == (2 * 5 * 16, 2 * 11 * 16)


@pytest.mark.parametrize("name, places", [("llama", 7), ("gemma", 4)])
def test_added_biases_are_zero_and_survive_saving(name, places, tmp_path):
    model = world("text")["model"]
    if name == "gemma":
        model = Model.of(hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**BERT, num_key_value_heads=1, head_dim=8)))
    batch = {"input_ids": torch.arange(12).view(2, 6)}
    with torch.no_grad():
        before = model(batch)
        model = Run(0).step(BitFit(add=True), model)
        torch.testing.assert_close(model(batch), before)
        assert len(trained(model)) == 2 * places
        for p in model.net.parameters():
            p.add_(0.5 * p.requires_grad)
        back = Model.of(str(model.save(tmp_path / "model")))
        torch.testing.assert_close(back(batch), model(batch))


@pytest.mark.parametrize(
    "fields, match",
    [({}, "add"), ({"add": True, "kinds": ("nose",)}, "nose"), ({"add": True, "trainable": ("x",)}, "trainable")],
)
def test_nothing_to_train_is_said(fields, match):
    with pytest.raises(ValueError, match=match):
        BitFit(**fields)(Run(0), world("text")["model"])


def test_no_bias_is_added_that_would_be_lost():
    t5 = hf.T5ForConditionalGeneration(
        hf.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="nor a place"):
        BitFit(add=True)(Run(0), Model.of(t5))


def dimmed(data):
    return data.with_(features=(0.4 * np.asarray(data["features"])).astype(np.float32))


def measure(seed: int, arm: str) -> float:
    """20 labelled digits in dim light; each arm at the best of five learning rates (3e-4 and 1e-4)."""
    at, run = world("digits", seed), Run(seed)
    model = run.step(BitFit(), at["teacher"]) if arm == "method" else at["teacher"]
    rows = dimmed(at["data"]).take(run.numpy("rows").permutation(len(at["data"]))[:20])
    run.fit(model, rows, steps=100, **{**HOW["digits"], "lr": 3e-4 if arm == "method" else 1e-4})
    return float(run.infer(model, dimmed(at["test"]), lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="bitfit",
    world="digits",
    rival="full fine-tuning",
    quantity="test accuracy after adapting to dim digits with 20 labels",
    better="higher",
    measure=measure,
    seeds=20,
    quick=5,
)
