"""A language model's vocabulary: the rows of its tokens, and a BPE tokenizer's merges, gone on with on new text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from itertools import islice
from typing import Any

from torch import nn

from trainlore.errors import Bad

PLANE = 0x10000  # characters from here on stand for tokens while new merges are learned


def sides(net: Any) -> dict[str, nn.Module]:
    """The layers that hold a row a token: "input", and "output" where that has rows of its own."""
    inside, outside = net.get_input_embeddings(), net.get_output_embeddings()
    return {"input": inside} | ({} if outside is None or outside.weight is inside.weight else {"output": outside})


def extended(tokenizer: Any, texts: Iterable[str], new: int) -> Any:
    """A copy of a BPE tokenizer with at most `new` more tokens, by going on to merge its own tokens on the texts."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, merges = state["model"].get("vocab"), state["model"].get("merges")
    if state["model"]["type"] != "BPE":
        raise Bad(f"only a BPE tokenizer can be extended, not {state['model']['type']}")
    learned = learn_merges(tokenizer, texts, new)
    following = len(tokenizer)
    for left, right in learned:
        if left + right not in vocab:
            vocab[left + right], following = following, following + 1
        merges.append([left, right])
    made = deepcopy(tokenizer)
    made._tokenizer = Tokenizer.from_str(json.dumps(state))
    return made


def encoded(tokenizer: Any, texts: Iterable[str], size: int = 1024) -> Iterator[tuple[list[int], list[int | None]]]:
    """Of every text the token ids and the number of the word each is in, a bounded number of texts at a time."""
    texts = iter(texts)
    while some := list(islice(texts, size)):
        made = tokenizer(some, add_special_tokens=False)
        for i, ids in enumerate(made["input_ids"]):
            yield ids, made.word_ids(i)


def learn_merges(tokenizer: Any, texts: Iterable[str], new: int) -> list[tuple[str, str]]:
    """Up to `new` further merges, each of two tokens' texts, most frequent first.

    Every word goes to the trainer as one character a token, so that it merges tokens and not letters."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    special, lines = set(tokenizer.all_special_ids), []
    for ids, words in encoded(tokenizer, texts):
        line, last = [], None
        for word, token in zip(words, ids, strict=True):
            if word != last or token in special:
                line.append(" ")
            line.append(" " if token in special else chr(PLANE + token))
            last = word
        lines.append("".join(line))
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    size = len(set().union(*lines) - {" "}) + new
    trained.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, min_frequency=2, show_progress=False))

    def spelled(piece: str) -> str:
        return "".join(tokenizer.convert_ids_to_tokens(ord(c) - PLANE) for c in piece)

    return [(spelled(a), spelled(b)) for a, b in json.loads(trained.to_str())["model"]["merges"]]
