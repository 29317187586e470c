"""The smallest worlds, on which every method is tried in about a second: nouns by name, fresh at every call."""

from __future__ import annotations

from functools import cache
from typing import Any

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run

NAMES = ("digits", "text", "pairs", "sums")
HOW = {  # how `fit` is called in each, unless a test says otherwise
    "digits": {"batch_size": 32, "lr": 1e-2, "precision": "fp32"},
    "text": {"batch_size": 8, "lr": 3e-3, "precision": "fp32"},
    "pairs": {"batch_size": 8, "lr": 1e-3, "precision": "fp32"},
    "sums": {"batch_size": 32, "lr": 3e-3, "precision": "fp32"},
}


def world(name: str, seed: int = 0) -> dict[str, Any]:
    """Nouns of a tiny world. All have `model` and `data`; further ones are what `$name` in a `tiny` recipe stands for.

    - digits: an MLP on 400 rows of 8x8 digits; `test`, `spare` (unlabelled rows), `noisy` (a fifth wrong, `truth`),
      `teacher` (trained wider MLP), `proxies` (two briefly trained MLPs), `judge`-free.
    - text: a two-layer Llama on short texts of two domains; `target` (domain b), `held_out` (both), `teacher`, `prior`,
      `expert_a`, `expert_b` (copies trained on one domain each).
    - pairs: that Llama, and prompt/chosen/rejected rows; `reference` a copy of it.
    - sums: a two-layer Llama that writes "12+7=" -> "19"; `test`.
    """
    if name == "digits":
        return {
            **_digits(),
            "model": preset("mlp", seed=seed, width=32),
            "teacher": _teacher().copy(),
            "proxies": [p.copy() for p in _proxies()],
        }
    if name == "text":
        made = {k: v.copy() for k, v in _experts().items()}
        return {**_texts(), "model": llama(seed), **made}
    if name == "pairs":
        return {"data": _pairs(), "model": llama(seed), "reference": llama(seed)}
    if name == "sums":
        return {**_sums(), "model": llama(seed, arithmetic=True)}
    raise Bad(f"no tiny world {name!r}; there are {', '.join(NAMES)}")


def llama(seed: int = 0, arithmetic: bool = False, width: int = 32, layers: int = 2) -> Model:
    """A Llama of two layers and width 32 with the small tokenizer of its world."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from trainlore.worlds import sums, two_domains

    tokenizer = sums.tokenizer() if arithmetic else two_domains.tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with Run(seed).global_rng("weights"):
        return Model(LlamaForCausalLM(config).eval(), "causal", tokenizer)


@cache
def _digits() -> dict[str, Data]:
    from trainlore.worlds import digits

    parts = {k: Data(v) for k, v in digits.split().items()}
    return {"data": parts["train"].take(range(400)), **{k: v for k, v in parts.items() if k != "train"}}


@cache
def _teacher() -> Model:
    return Run(11).fit(preset("mlp", seed=11, width=64), _digits()["data"], steps=150, **HOW["digits"])


@cache
def _proxies() -> list[Model]:
    return [Run(s).fit(preset("mlp", seed=s, width=32), _digits()["data"], steps=20, **HOW["digits"]) for s in (21, 22)]


@cache
def _texts() -> dict[str, Data]:
    from trainlore.worlds import two_domains

    encode = llama().encode
    return {
        "data": encode(Data(two_domains.make(300, seed=0))),
        "target": encode(Data(two_domains.make(60, seed=1, domains=("b",)))),
        "held_out": encode(Data(two_domains.make(60, seed=2))),
    }


@cache
def _experts() -> dict[str, Model]:
    texts = _texts()
    prior = Run(31).fit(llama(31), texts["data"], steps=60, **HOW["text"])
    made = {"prior": prior, "teacher": Run(32).fit(prior.copy(), texts["data"], steps=60, **HOW["text"])}
    domain = texts["data"]["domain"].to_pylist()
    for name in ("a", "b"):
        mine = texts["data"].where([d == name for d in domain])
        made[f"expert_{name}"] = Run(33).fit(prior.copy(), mine, steps=40, **HOW["text"])
    return made


@cache
def _pairs() -> Data:
    from trainlore.worlds import two_domains

    return llama().encode(Data(two_domains.pairs(120, seed=3)))


@cache
def _sums() -> dict[str, Data]:
    from trainlore.worlds import sums

    encode = llama(arithmetic=True).encode
    return {
        "data": encode(Data(sums.make(400, seed=0, digits=1))),
        "test": encode(Data(sums.make(100, seed=1, digits=1))),
    }
