from __future__ import annotations

import json
import re
import tempfile
import textwrap
from functools import cache
from inspect import getdoc
from pathlib import Path

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.synthesize.restructured_signals import DOCSTRINGS, RestructuredSignals, occurrences, offered
from trainlore.nouns import Data, Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import python_docs

REAL = Data.of([getdoc(f) for f in (np.mean, np.sort, np.linalg.norm, json.dumps, textwrap.wrap, re.sub, re.compile)])
NOTE = """Add two numbers.

Both must be finite.

Args:
    left (int): The one number.
    right: The other.

Returns:
    Their sum.

>>> add(1, 2)
3
"""


def one(name, data):
    signal = next(s for s in DOCSTRINGS if s["name"] == name)
    at, got = occurrences(data, signal)
    return at.tolist(), [got[n].to_pylist() for n in ("text", "about", "answer")]


def test_signals_are_what_a_search_in_each_row_finds():
    for signal in DOCSTRINGS:
        if "from" in signal:
            continue
        at, got = occurrences(REAL, signal)
        wanted = []
        for i, text in enumerate(REAL.text()):
            match = next((m for p in signal["find"] if (m := re.search(p, text))), None)
            if match:
                groups = {"text": text, "about": "", **match.groupdict()}
                wanted.append((i, *(groups[n].strip() for n in ("text", "about", "answer"))))
        assert list(zip(at.tolist(), *(got[n].to_pylist() for n in ("text", "about", "answer")))) == wanted
        assert len(wanted) > 0, signal["name"]


def test_a_docstring_gives_up_its_parts():
    data = Data.of({"text": [NOTE, "No parts."], "name": ["pkg.add", None], "kind": ["function", "class"]})
    assert one("first line", data) == ([0], [[NOTE.partition("\n\n")[2].strip()], [""], ["Add two numbers."]])
    assert one("parameter", data)[1][1:] == [["left"], ["The one number."]]
    assert one("example", data)[1][1:] == [["add(1, 2)"], ["3"]]
    assert one("heading", data)[1][2] == ["Args"] and "Args" not in one("heading", data)[1][0][0]
    assert one("name", data) == ([0], [[NOTE.strip()], [""], ["add"]])
    got = RestructuredSignals(choice=0.0)(Run(0), data)
    found = dict(zip(got["signal"].to_pylist(), got["completion"].to_pylist()))
    assert found["name"] == " add" and "signature" not in found and got["signal"].to_pylist().count("kind") == 2
    assert got["parents"].tolist() == [0] * (len(got) - 1) + [1]
    assert all(p.startswith("TEXT: ") and p.endswith("\nANSWER:") for p in got.text("prompt"))


def test_offers_hold_the_answer_among_others():
    code = np.arange(400) % 7
    shown = offered(code, 7, 4, np.random.default_rng(0))
    assert shown.shape == (400, 4) and (shown == code[:, None]).sum(1).tolist() == [1] * 400
    assert all(len(set(row)) == 4 for row in shown.tolist()) and set(shown.ravel()) == set(range(7))
    assert np.bincount(np.argmax(shown == code[:, None], 1), minlength=4).min() > 60  # nowhere in particular
    assert offered(np.zeros(3, int), 1, 4, np.random.default_rng(0)).tolist() == [[0]] * 3


def test_the_authors_prompt_is_made():
    reviews = Data.of({"text": ["The best skillet you can buy.", "It broke."], "label": ["positive", "negative"]})
    signal = {"name": "rating", "from": "label", "find": ["(?P<answer>.+)"], "ask": ["Is this review"]}
    got = RestructuredSignals(signals=(signal,), choice=1.0, form="TEXT: {text} QUERY: {query}")(Run(0), reviews)
    for prompt, text in zip(got.text("prompt"), reviews.text()):
        start, last = f'TEXT: {text} QUERY: Is this review "', ('positive" or "negative"', 'negative" or "positive"')
        assert prompt in {start + x for x in last}
    assert got["completion"].to_pylist() == [" positive", " negative"]
    some = RestructuredSignals(signals=(signal,), cap=1, choice=0.0, longest=2, form="{text}|{query}")(Run(0), reviews)
    assert len(some) == 1 and some["prompt"][0].as_py()[2:] == "|Is this review"
    short = RestructuredSignals(signals=({**signal, "from": "text"},), answer=10)(Run(0), reviews)
    assert short["completion"].to_pylist() == [" It broke."]


def test_bad_input_is_named():
    good = {"name": "x", "find": ["(?P<answer>.)"], "ask": ["?"]}
    for fields, name in (
        ({"choice": 2.0}, "choice"),
        ({"form": "{text}"}, "form='{text}'"),
        ({"signals": ({"name": "x"},)}, "'x' does not say ask, find"),
        ({"signals": ({**good, "find": ["("]},)}, "cannot be searched"),
        ({"signals": ({**good, "find": ["(?P<end>.)"]},)}, "no group"),
        ({"signals": ({**good, "from": "mood"},)}, "none of x"),
    ):
        with pytest.raises(ValueError, match=name):
            RestructuredSignals(**fields)(Run(0), REAL)


@cache
def docs():
    """Docstrings of two packages to learn from and of a third to judge by, and a tokenizer of the first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    with tempfile.TemporaryDirectory() as folder:
        parts = [
            python_docs.gather(Path(folder), p, workers=1).combine_chunks() for p in (("click", "rich"), ("joblib",))
        ]
    known, new = (Data(p) for p in parts)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=["<pad>", "<bos>", "<eos>"], show_progress=False)
    made.train_from_iterator(list(known.text()), trainer)
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    return known, new, PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **named)


def small(run, tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 96}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=2, pad_token_id=0, **sizes, **heads)
    with run.global_rng("weights"):
        return Model(LlamaForCausalLM(config).eval(), "causal", tokenizer)


def measure(seed: int, arm: str) -> float:
    run, (known, new, tokenizer) = Run(seed), docs()
    how = {"lr": 5e-3, "batch_size": 16, "precision": "fp32", "truncate": True}
    short = {"longest": 120, "answer": 40, "options": 2}
    rows = Data.of([f"{head}\n{text}" for head, text in zip(known.text("signature"), known.text())])
    if arm == "method":
        rows = RestructuredSignals(**short)(run, known)
    model = run.fit(small(run, tokenizer), rows, tokens=40_000, **how)
    asked = RestructuredSignals(**short)(run, new)
    turn = run.numpy("shots").permutation(len(asked))
    run.fit(model, asked.take(turn[:32]), steps=8, **how)
    loss = run.infer(
        model, asked.take(turn[32:192]), lambda batch, out: per_row(rowwise("causal", batch, out), batch, "causal")
    )
    return float(loss.mean())


CLAIM = Claim(
    method="restructured_signals",
    world="docstrings",
    rival="the same documents as they are, at equal tokens",
    quantity="loss of the answers to questions about a new package, after 32 of them to learn from",
    better="lower",
    measure=measure,
    seeds=10,
    quick=1,
)
