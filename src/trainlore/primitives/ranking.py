"""Ranking texts for a query: embeddings of every layer with a gradient, and what a teacher scores."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trainlore.runs import Run

__all__ = ["SIDES", "embeddings", "layer_scores", "margins", "ranker", "triples"]

SIDES = "prompt", "chosen", "rejected"  # the query, a text that answers it, and one that does so less
BLOCK = 1 << 14  # rows whose embeddings are held at once


def ranker(model: Model, who: str) -> None:
    """Raise Bad unless the model can embed texts: a Transformer of Hugging Face with a tokenizer."""
    if model.tokenizer is None or model.input != "input_ids" or not hasattr(model.net, "config"):
        raise Bad(f"{who} embeds texts: {model!r} is no language model with a tokenizer")


def embeddings(model: Model, texts: Sequence[str]) -> Tensor:
    """Mean over the real tokens of what each layer says of these texts, (layers, B, D); the last one as `Run.embed` has it.

    The layer of token vectors is left out. A gradient flows unless it is off outside; texts over the window lose their end.
    """
    rows = model.encode(Data.of(list(texts)), truncate=True)
    batch = rows.batch(np.arange(len(rows)), model)
    net: Any = model.net.get_encoder() if model.kind == "seq2seq" else model.net  # type: ignore[operator]
    given: dict[str, Any] = {k: batch[k].to(model.device) for k in ("input_ids", "attention_mask")}
    if model.kind == "causal":
        given["use_cache"] = False
        if "logits_to_keep" in inspect.signature(net.forward).parameters:  # nobody reads the words' logits
            given["logits_to_keep"] = 1
    out = net(**given, output_hidden_states=True)
    hidden = getattr(out, "hidden_states", None) or out.encoder_hidden_states
    mask = given["attention_mask"][..., None]
    return torch.stack([(h.float() * mask).sum(1) for h in hidden[1:]]) / mask.sum(1).clamp(min=1)


def triples(data: Data, rows: Tensor) -> tuple[list[str], list[str]]:
    """Queries (B) and texts (2B) of these rows: all the chosen ones, then all the rejected ones."""
    mine = data.take(rows.cpu().numpy())
    query, chosen, rejected = (list(mine.text(side)) for side in SIDES)
    return query, chosen + rejected


def layer_scores(model: Model, query: Sequence[str], texts: Sequence[str]) -> Tensor:
    """Dot products of the embeddings of each layer: queries (B), texts (M) -> (layers, B, M)."""
    asked, given = embeddings(model, query), embeddings(model, texts)
    with torch.autocast(asked.device.type, enabled=False):  # a divergence of scores needs all their digits
        return asked @ given.transpose(1, 2)


def margins(run: Run, teachers: Sequence[Model], data: Data) -> Tensor:
    """How much better than `rejected` the teachers think, in the mean, that `chosen` answers `prompt`: float32 (N,).

    A classifier or regressor reads query and text as one row: its number, or of two classes the second's logit less the
    first's. Any other model embeds both apart: the dot product of the last layers' means. Each in its own tokens.
    """
    data.need(*SIDES, who="a teacher's margin")
    if not teachers:
        raise Bad("teachers: give at least one model that scores a query with a text")
    for teacher in teachers:
        ranker(teacher, "a teacher of rankings")
    blocks = [data.take(np.arange(at, min(at + BLOCK, len(data)))) for at in range(0, len(data), BLOCK)]
    found = [torch.cat([_margins(run, teacher, block) for block in blocks]) for teacher in teachers]
    return torch.stack(found).mean(0)


def _margins(run: Run, teacher: Model, data: Data) -> Tensor:
    query, good, bad = (list(data.text(side)) for side in SIDES)
    if teacher.kind in ("classifier", "regressor"):
        return _crossed(run, teacher, query, good) - _crossed(run, teacher, query, bad)
    asked, good_, bad_ = (run.embed(teacher, teacher.encode(Data.of(t), truncate=True)) for t in (query, good, bad))
    return (asked * (good_ - bad_)).sum(1)


def _crossed(run: Run, teacher: Model, query: list[str], texts: list[str]) -> Tensor:
    """The score (N,) of each query with its text, read as one row."""
    rows = teacher.encode(Data.of({"prompt": query, "completion": texts}), truncate=True)

    def scored(batch: dict[str, Any], out: Tensor) -> Tensor:
        out = out.reshape(len(out), -1).float()
        if out.shape[1] > 2:
            raise Bad(
                f"teacher={teacher!r} gives {out.shape[1]} numbers a row; a score is one, or the logits of two classes"
            )
        return out[:, -1] - (out[:, 0] if out.shape[1] == 2 else 0)

    return run.infer(teacher, rows.without("labels"), scored)
