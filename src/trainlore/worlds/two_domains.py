"""The small text world: made-up texts of two or more domains that share words and differ in their use.

Each domain is a Markov chain over the same 96 words. Domains have their own frequent words (Zipf's law, each in its own
order) and their own successors of each word, so that a bag of words tells them apart and a language model can learn
both. `target` is a domain of its own that resembles b: nine transitions in ten are those of b, the others those of a.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad

if TYPE_CHECKING:
    import tokenizers
    import transformers

WORDS = tuple(c1 + v1 + c2 + v2 for c1, c2 in ("bd", "gl", "km", "nr", "ps", "tv") for v1 in "aeio" for v2 in "aeiu")
SHORT, LONG = 10, 40  # words of a text
SPECIAL = ("<pad>", "<bos>", "<eos>")
VOCABULARY = 384


def make(
    n: int,
    seed: int,
    domains: Sequence[str] = ("a", "b"),
    duplicates: float = 0.0,
    noise: float = 0.0,
) -> pa.Table:
    """Draw n texts: `text` (10 to 40 words) and `domain`, the domains in turn in random order.

    `domains`: any names; each names a chain, the same in every call, and "target" the one near b. `duplicates` and
    `noise` are shares of rows that are replaced by an exact copy of a clean row (with its domain) or by words without
    order; with either, a column `made` says "clean", "copy" or "noise".
    """
    if n < 0 or not domains:
        raise Bad(f"n={n}, domains={tuple(domains)}: give a count of texts and at least one domain")
    if min(duplicates, noise) < 0 or duplicates + noise >= 1:
        raise Bad(f"duplicates={duplicates}, noise={noise}: shares of the rows, below 1 in all")
    rng = np.random.default_rng((seed, 0))
    which = rng.permutation(np.arange(n) % len(domains))
    lengths = rng.integers(SHORT, LONG + 1, n)
    words = _walk(np.stack([_chain(d) for d in domains]), which, LONG, rng)
    order = rng.permutation(n)
    copies, noisy = order[: round(duplicates * n)], order[round(duplicates * n) :][: round(noise * n)]
    words[noisy] = rng.integers(0, len(WORDS), (len(noisy), LONG))
    clean = order[len(copies) + len(noisy) :]
    if len(copies):
        origin = clean[rng.integers(0, len(clean), len(copies))]
        words[copies], lengths[copies], which[copies] = words[origin], lengths[origin], which[origin]
    columns = {"text": _spoken(words, lengths), "domain": [domains[k] for k in which]}
    if duplicates or noise:
        made = np.full(n, "clean", dtype=object)
        made[copies], made[noisy] = "copy", "noise"
        columns["made"] = made.tolist()
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def pairs(n: int, seed: int, good: str = "b", bad: str = "a", words: int = 8) -> pa.Table:
    """Draw n preferences: `prompt` (words of domain `good`), `chosen` (as `good` goes on), `rejected` (as `bad` does).

    Both go on from the last word of the prompt, start with a space and have as many words as it.
    """
    rng = np.random.default_rng((seed, 1))
    chains = np.stack([_chain(good), _chain(bad)])
    prompt = _walk(chains, np.zeros(n, np.int64), words, rng)
    chosen, rejected = (_walk(chains, np.full(n, k), words, rng, after=prompt[:, -1]) for k in (0, 1))
    length = np.full(n, words)
    spoken = {
        "prompt": _spoken(prompt, length),
        "chosen": _spoken(chosen, length),
        "rejected": _spoken(rejected, length),
    }
    spoken |= {
        name: [" " + text for text in spoken[name]] for name in ("chosen", "rejected")
    }  # prompt + chosen is a text
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in spoken.items()})


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Byte-level BPE of 384 tokens with <pad>, <bos>, <eos>, trained on a fixed sample. A new one at every call."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )


@cache
def _trained() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    made: tokenizers.Tokenizer = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(make(400, seed=0, domains=("a", "b", "target"))["text"].to_pylist(), trainer)
    return str(made.to_str())


@cache
def _chain(domain: str) -> np.ndarray:
    """Transition shares of a domain, float64 (words + 1, words); the last row is how a text begins.

    Half of what follows a word is one of four successors of its own, half is drawn by how frequent words are.
    """
    if domain == "target":
        return 0.9 * _chain("b") + 0.1 * _chain("a")
    rng = np.random.default_rng((7, zlib.crc32(domain.encode())))
    size = len(WORDS)
    often = np.empty(size)
    often[rng.permutation(size)] = 1 / np.arange(1, size + 1)
    chain = np.tile(often / often.sum(), (size + 1, 1))
    chain[:size] *= 0.5
    for share in (0.25, 0.125, 0.075, 0.05):
        chain[np.arange(size), rng.permutation(size)] += share
    return chain


def _walk(
    chains: np.ndarray, which: np.ndarray, steps: int, rng: np.random.Generator, after: np.ndarray | None = None
) -> np.ndarray:
    """Word numbers of walks in the chains (K, words + 1, words) that `which` (N,) names: int64 (N, steps)."""
    upto = chains.cumsum(-1)
    upto[..., -1] = 1.0  # rounding must not leave a draw without a word
    word = np.full(len(which), len(WORDS)) if after is None else after
    words = np.empty((len(which), steps), np.int64)
    for t in range(steps):
        word = (upto[which, word] < rng.random((len(which), 1))).sum(-1)
        words[:, t] = word
    return words


def _spoken(words: np.ndarray, lengths: np.ndarray) -> list[str]:
    names = np.array(WORDS, dtype=object)
    return [" ".join(names[row[:length]]) for row, length in zip(words, lengths, strict=True)]
