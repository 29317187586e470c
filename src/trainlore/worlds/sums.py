"""The verifier's world: sums to be written out, which can be checked exactly, in a tokenizer of single characters."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad

if TYPE_CHECKING:
    import tokenizers
    import transformers

PROMPT = re.compile(r"(\d{1,18})([+*-])(\d{1,18})=")
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
CHARACTERS = "0123456789+-*= "


def make(n: int, seed: int, digits: int = 2, operators: str = "+") -> pa.Table:
    """Draw n problems: `prompt` "12+7=", `completion` "19".

    Numbers are uniform from 0 to 10^digits - 1. No problem comes twice before all came once; then they come again, in
    a new order.
    """
    return _table(_drawn(n, seed, digits, operators), digits, operators)


def split(train: int, test: int, seed: int = 0, digits: int = 2, operators: str = "+") -> dict[str, pa.Table]:
    """Tables `train` and `test` that share no problem."""
    if train + test > (there := _count(digits, operators)):
        raise Bad(
            f"train={train} and test={test} together exceed the {there} problems of {digits} digits; raise digits"
        )
    drawn = _drawn(train + test, seed, digits, operators)
    return {"train": _table(drawn[:train], digits, operators), "test": _table(drawn[train:], digits, operators)}


def correct(prompts: Iterable[str], completions: Iterable[str]) -> np.ndarray:
    """Whether each completion is the answer to its prompt and nothing else, bool (N,); space around it is forgiven."""
    prompts, completions = list(prompts), list(completions)
    if len(prompts) != len(completions):
        raise Bad(f"{len(prompts)} prompts and {len(completions)} completions")
    answers = _answers(prompts)
    return np.fromiter((c.strip() == a for c, a in zip(completions, answers, strict=True)), bool, len(answers))


@cache
def _alphabet() -> tokenizers.Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    names = {name: i for i, name in enumerate((*SPECIAL, *CHARACTERS))}
    made = Tokenizer(models.WordLevel(names, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    return made


def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A token a character, and <pad>, <bos>, <eos>, <unk>: 19 in all. A new one at every call."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_alphabet().to_str()),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


def _count(digits: int, operators: str) -> int:
    if not 1 <= digits <= 8:
        raise Bad(f"digits={digits}: 1 to 8")
    if not operators or set(operators) - set("+-*"):
        raise Bad(f"operators={operators!r}: some of + - *")
    return int(100**digits) * len(operators)


def _drawn(n: int, seed: int, digits: int, operators: str) -> np.ndarray:
    """Numbers of n problems below `_count`, int64 (n,)."""
    there = _count(digits, operators)
    if n < 0:
        raise Bad(f"n={n}: a count of problems")
    rng = np.random.default_rng((seed, digits, len(operators)))
    if there <= 4_000_000:
        rounds = [rng.permutation(there) for _ in range(max(1, -(-n // there)))]
        return np.concatenate(rounds)[:n]
    drawn = np.empty(0, np.int64)
    while len(drawn) < n:  # among so many a repeat is rare
        drawn = np.concatenate([drawn, rng.integers(0, there, n)])
        drawn = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:n]
    return drawn


def _table(drawn: np.ndarray, digits: int, operators: str) -> pa.Table:
    which, pair = np.divmod(drawn, 100**digits)
    first, second = np.divmod(pair, 10**digits)
    prompts = [
        f"{a}{operators[k]}{b}=" for k, a, b in zip(which.tolist(), first.tolist(), second.tolist(), strict=True)
    ]
    columns = {"prompt": prompts, "completion": _answers(prompts)}
    return pa.table({name: pa.array(values, pa.large_string()) for name, values in columns.items()})


def _answers(prompts: Sequence[str]) -> list[str]:
    answers = []
    for row, prompt in enumerate(prompts):
        parts = PROMPT.fullmatch(prompt)
        if parts is None:
            raise Bad(f'row {row}: {prompt[:60]!r} is no problem of this world; they read "12+7="')
        a, operator, b = int(parts[1]), parts[2], int(parts[3])
        answers.append(str(a + b if operator == "+" else a - b if operator == "-" else a * b))
    return answers
