from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
import torch
import transformers as hf

from trainlore.claims import Claim
from trainlore.methods.start.vocabulary.bpe import BPE, train
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds.tiny import world

TEXTS = ["low low low low low lower lower newest newest newest newest newest newest widest widest widest"]


def learned(tokenizer) -> list[tuple[str, str]]:
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]


def test_merges_against_a_loop():
    """The paper's example, word ends marked by the leading space instead; ties as in the loop are left to the library."""
    words = Counter(" ".join(TEXTS).split(" "))
    pieces = {w: ["Ġ", *w] for w in words}
    expected = []
    for _ in range(3):
        counts: Counter = Counter()
        for w, n in words.items():
            for pair in zip(pieces[w], pieces[w][1:]):
                counts[pair] += n
        best = max(counts.values())
        expected.append({pair for pair, n in counts.items() if n == best})
        a, b = chosen = learned(train([" " + " ".join(TEXTS)], 260 + 3))[len(expected) - 1]
        assert chosen in expected[-1]
        for w, parts in pieces.items():
            out: list[str] = []
            for part in parts:
                if out and out[-1] == a and part == b:
                    out[-1] = a + b
                else:
                    out.append(part)
            pieces[w] = out


def test_every_byte_comes_back_and_the_same_texts_give_the_same_tokens():
    corpus = [f"naïve café {i} \U0001f600\n\tdef f(x): return x" for i in range(50)]
    one, two = train(corpus, 275), train(corpus, 275)
    assert one.to_str() == two.to_str() and one.get_vocab_size() == 275
    for text in ["ünseen ￼ \x00 text\r\n", *corpus[:2]]:
        assert one.decode(one.encode(text).ids) == text


@pytest.mark.parametrize("kind", ["causal", "masked", "seq2seq", "untied"])
def test_the_model_fits_its_tokenizer(kind, tmp_path):
    if kind == "untied":
        small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = Model.of(hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=99, **small)))
    else:
        model = preset({"causal": "llama-1m", "masked": "bert-4m", "seq2seq": "t5-4m"}[kind], vocab=500)
    spread = model.net.get_input_embeddings().weight.std().item()
    corpus = Data.of({"text": [f"some words come again and again {i % 7}" for i in range(40)]})
    model = BPE(corpus=corpus, vocab=280)(Run(0), model)
    config, tokenizer = model.net.config, model.tokenizer
    assert config.vocab_size == len(tokenizer) == 280 == len(model.net.get_output_embeddings().weight)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id, tokenizer.mask_token_id) == (0, 1, 2, 3)
    assert model.net.get_input_embeddings().weight.std().item() == pytest.approx(spread, rel=0.1)
    outside = model.net.get_output_embeddings().weight
    assert (outside is model.net.get_input_embeddings().weight) == (kind != "untied")
    rows = model.encode(corpus.take(range(4))) if kind == "causal" else None
    back = Model.of(str(model.save(tmp_path / "m")))
    assert back.tokenizer("words come")["input_ids"] == tokenizer("words come")["input_ids"]
    if rows is not None:
        assert (
            torch.isfinite(back(rows.batch(range(4), back))).all()
            and tokenizer.decode(rows["input_ids"][0].as_py()[:-1]) == corpus["text"][0].as_py()
        )


def test_rows_are_named_by_the_seed():
    at = [BPE(corpus=world("text")["data"], vocab=280)(Run(s), world("text")["model"]).net for s in (0, 0, 1)]
    first, same, other = (net.get_input_embeddings().weight for net in at)
    assert torch.equal(first, same) and not torch.equal(first, other)


def test_mistakes_are_said():
    at = world("text")
    with pytest.raises(ValueError, match="vocab must be 260"):
        BPE(corpus=at["data"], vocab=100)(Run(0), at["model"])
    with pytest.raises(ValueError, match="prose"):
        BPE(corpus=at["data"], column="prose")(Run(0), at["model"])
    with pytest.raises(ValueError, match="no token embeddings"):
        BPE(corpus=at["data"])(Run(0), world("digits")["model"])


def measure(seed: int, arm: str) -> float:
    """Tokens a byte on texts it was not trained on; the rival has the bytes alone."""
    at = world("text", seed)
    corpus = at["data"].take(Run(seed).numpy("rows").permutation(len(at["data"]))[:100])
    trained = train(corpus.text("text"), 400 if arm == "method" else 260)
    texts = list(at["held_out"].text("text"))
    return float(np.sum([len(trained.encode(t).ids) for t in texts]) / np.sum([len(t.encode()) for t in texts]))


CLAIM = Claim(
    method="bpe",
    world="text",
    rival="bytes as tokens",
    quantity="tokens a byte of held-out text",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
