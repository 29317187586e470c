"""Rows of text made rows of tokens, with -100 wherever nothing is to be learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns.data import Data
    from trainlore.nouns.model import Model

CHUNK = 4096


def encode(model: Model, data: Data, window: int | None, truncate: bool) -> Data:
    """See `Model.encode`."""
    if model.input != "input_ids":
        raise Bad(f"{model!r} reads {model.input}, not text; give data with a column {model.input!r}")
    if model.tokenizer is None:
        raise Bad(f"{model!r} has no tokenizer: give one, or train one with `bpe`")
    if not len(data):
        raise Bad("there are no rows to encode")
    has = set(data.columns)
    limit = _Limit(window, truncate, data)
    if {"chosen", "rejected"} <= has:
        made: dict[str, Any] = {}
        for side in ("chosen", "rejected"):
            ids, labels = _answered(model, data, side, limit)
            made |= {f"{side}_input_ids": ids, f"{side}_labels": labels}
    elif {"prompt", "completion"} <= has:
        made = dict(zip(("input_ids", "labels"), _answered(model, data, "completion", limit), strict=True))
    elif "messages" in has:
        made = dict(zip(("input_ids", "labels"), _messages(model, data, limit), strict=True))
    elif "text" in has:
        ids = _Lists()
        end = (
            [model.tokenizer.eos_token_id]
            if model.kind == "causal" and model.tokenizer.eos_token_id is not None
            else []
        )
        for texts in _chunks(data, "text"):
            for one in model.tokenizer(texts, add_special_tokens=model.kind != "causal", verbose=False)["input_ids"]:
                ids.add(limit(one + end, len(ids)))
        made = {"input_ids": ids.arrow()}
        if model.kind in ("causal", "masked"):
            made["labels"] = made["input_ids"]
    else:
        raise Bad(
            "nothing to encode: there is no `text`, `messages`, `prompt`+`completion` or `prompt`+`chosen`+`rejected`; "
            f"there are {', '.join(data.columns)}"
        )
    return data.with_(**made)


class _Lists:
    """Ragged lists gathered as flat int32 chunks, not as Python objects."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.lengths: list[int] = []

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, ids: list[int]) -> None:
        self.parts.append(np.asarray(ids, np.int32))
        self.lengths.append(len(ids))

    def arrow(self) -> pa.LargeListArray:
        values = np.concatenate(self.parts) if self.parts else np.zeros(0, np.int32)
        return pa.LargeListArray.from_arrays(np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64), values)


class _Limit:
    def __init__(self, window: int | None, truncate: bool, data: Data) -> None:
        self.window, self.truncate, self.data = window, truncate, data

    def room(self, answer: int) -> int | None:
        """Tokens of a prompt that fit beside an answer this long, if cutting is allowed."""
        return max(0, self.window - answer) if self.truncate and self.window is not None else None

    def __call__(self, ids: list[int], row: int) -> list[int]:
        if self.window is None or len(ids) <= self.window:
            return ids
        if not self.truncate:
            raise Bad(
                f"row {self.data.ids[row]} has {len(ids):,} tokens, the model's window is {self.window:,}: cut the rows (`even_pieces`), "
                "pack them (`best_fit_packing`), or say truncate: true where a step has it"
            )
        return ids[: self.window]


def _chunks(data: Data, name: str) -> Any:
    chunk: list[str] = []
    for text in data.text(name):
        chunk.append(text)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _answered(model: Model, data: Data, answer: str, limit: _Limit) -> tuple[Any, Any]:
    """Prompt and answer as one sequence whose prompt is not trained on; of a seq2seq model, as input and labels."""
    tok = model.tokenizer
    end = [] if tok.eos_token_id is None else [tok.eos_token_id]
    ids, labels = _Lists(), _Lists()
    for prompts, answers in zip(_chunks(data, "prompt"), _chunks(data, answer), strict=True):
        asked = tok(prompts, add_special_tokens=False, verbose=False)["input_ids"]
        said = tok(answers, add_special_tokens=False, verbose=False)["input_ids"]
        for q, a in zip(asked, said, strict=True):
            row = len(ids)
            if model.kind == "seq2seq":
                ids.add(limit(q + end, row))
                labels.add(limit(a + end, row))
            else:
                q = q[
                    : limit.room(len(a) + len(end))
                ]  # a prompt is cut before its answer is: an answer cut away teaches nothing
                ids.add(limit(q + a + end, row))
                labels.add(limit([-100] * len(q) + a + end, row))
    return ids.arrow(), labels.arrow()


def _messages(model: Model, data: Data, limit: _Limit) -> tuple[Any, Any]:
    """Chats through the tokenizer's template; only what assistants say is trained on."""
    tok = model.tokenizer
    if not getattr(tok, "chat_template", None):
        raise Bad("the rows hold `messages` but the tokenizer has no chat template: set tokenizer.chat_template")
    ids, labels = _Lists(), _Lists()
    for at in range(0, len(data), CHUNK):
        for chat in data.take(np.arange(at, min(at + CHUNK, len(data))))["messages"].to_pylist():
            whole = tok.apply_chat_template(chat, tokenize=True, return_dict=False)
            label = [-100] * len(whole)
            for i, message in enumerate(chat):
                if message["role"] == "assistant":
                    before = len(
                        tok.apply_chat_template(chat[:i], tokenize=True, add_generation_prompt=True, return_dict=False)
                    )
                    after = len(tok.apply_chat_template(chat[: i + 1], tokenize=True, return_dict=False))
                    label[before:after] = whole[before:after]
            ids.add(limit(whole, len(ids)))
            labels.add(limit(label, len(labels)))
    return ids.arrow(), labels.arrow()
