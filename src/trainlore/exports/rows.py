"""The rows that an export is judged by: where they come from, which places of them count, and what they cost before and after."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives import losses as L
from trainlore.primitives.statistics import bootstrap_interval
from trainlore.runs import Run

ROWS, LENGTH = 32, 256  # at most so many rows, and so many tokens of each
VALUES = 1 << 27  # logits held at once, 0.5 GB: a large vocabulary gets fewer rows
TOKENS = ("input_ids", "attention_mask", "token_type_ids")
SILENT = ("encoder", "denoiser")  # kinds whose outputs are no answers


def rows_for(model: Model, data: Data | None = None) -> tuple[dict[str, Any], str]:
    """A batch that the model can read, and whose rows they are."""
    if data is not None:
        return _cut(model, _given(model, data)), "given"
    if model.probe is not None and model.input in model.probe and model.kind != "seq2seq":
        return _cut(model, model.probe), "kept from training"
    if model.kind == "causal" and hasattr(model.net, "generate"):
        with suppress(RuntimeError):  # outputs that are no numbers: nothing can be drawn from them
            return _cut(model, _written(model)), "that the model wrote"
    return made(model), "made up"


def real(model: Model, batch: dict[str, Any], out: Tensor) -> Any:
    """Which places of the logits count: an index into them that leaves out padding."""
    mask = batch.get("attention_mask")
    if mask is None or model.kind == "seq2seq" or out.dim() < 3 or mask.shape != out.shape[:2]:
        return ...
    return mask.bool()


def counted(model: Model, batch: dict[str, Any]) -> tuple[str, int]:
    """What speed is counted in, and how many of them the batch holds: tokens that are not padding, else rows."""
    if model.input != "input_ids":
        return "rows", len(batch[model.input])
    mask = batch.get("attention_mask")
    return "tokens", int(batch["input_ids"].numel() if mask is None else mask.sum())


def change(model: Model, batch: dict[str, Any], before: Tensor, after: Tensor) -> dict[str, Any]:
    """The metric before and its paired change with a 95 % interval over rows, and how often the first answer is the same."""
    if model.kind in SILENT:
        return {}
    found: dict[str, Any] = {}
    if model.kind != "regressor":
        places = real(model, batch, before)
        found["agreement"] = float((before[places].argmax(-1) == after[places].argmax(-1)).double().mean())
    if "labels" not in batch:
        return found
    was, now = (L.per_row(L.rowwise(model.kind, batch, out), batch, model.kind).double() for out in (before, after))
    moved = (now - was).numpy()
    found |= {"loss_before": float(was.mean()), "loss_change": float(moved.mean())}
    if len(moved) > 1 and np.isfinite(moved).all():
        found["loss_interval"] = list(bootstrap_interval(moved))
    return found


def made(model: Model) -> dict[str, Any]:
    """Two rows of noise of the shape that the model reads."""
    net: Any = model.net
    g = Run(0).rng("export")
    if model.input == "pixel_values":
        c = net.config
        return {
            "pixel_values": torch.rand(2, c.num_channels, c.image_size, c.image_size, generator=g),
            "row": torch.arange(2),
        }
    if model.input != "input_ids":
        if model.probe is not None and model.input in model.probe:
            return model.probe
        reads = next((m for m in net.modules() if any(True for _ in m.parameters(recurse=False))), None)
        if not isinstance(reads, nn.Linear):
            raise Bad(f"what {type(net).__name__} reads cannot be made up: give rows, or a model that kept some")
        return {model.input: torch.randn(2, reads.in_features, generator=g), "row": torch.arange(2)}
    length = min(16, model.window or 16)
    ids = torch.randint(getattr(net.config, "vocab_size", 2), (2, length), generator=g)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "row": torch.arange(2)}
    return found | ({"labels": ids} if model.kind in ("causal", "masked", "seq2seq") else {})


def _given(model: Model, data: Data) -> dict[str, Any]:
    from trainlore.readiness import prepared

    if not len(data):
        raise Bad("the export was given no rows to judge by: give some, or none at all and it makes its own")
    few = data.take(np.arange(min(ROWS, len(data))))
    batch = prepared(model, few, True).batch(np.arange(len(few)), model)
    if model.input not in batch:
        raise Bad(f"the rows to judge by have no {model.input!r}, which {type(model.net).__name__} reads")
    return batch


def _written(model: Model, rows: int = 16, length: int = 32) -> dict[str, Any]:
    """Rows drawn from the model itself, a token after the other, the first at random."""
    net: Any = model.net
    length = min(length, model.window or length)
    run = Run(0)
    first = torch.randint(net.config.vocab_size, (rows, 1), generator=run.rng("export"))
    how = {"do_sample": True, "top_k": 0, "min_new_tokens": length - 1, "max_new_tokens": length - 1, "pad_token_id": 0}
    with run.global_rng("export"), torch.no_grad():
        ids = net.generate(first, attention_mask=torch.ones_like(first), **how)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "row": torch.arange(rows)}


def _cut(model: Model, batch: dict[str, Any]) -> dict[str, Any]:
    """The batch without what only packing needs, and no larger than its logits may be."""
    batch = {k: v for k, v in batch.items() if k not in ("segment_ids", "position_ids")}
    if model.input != "input_ids":
        return batch
    places = (*TOKENS, "labels") if model.kind in ("causal", *L.ALIGNED) else TOKENS
    batch = {k: v[:, :LENGTH] if k in places and v.dim() == 2 else v for k, v in batch.items()}
    each = batch["input_ids"].shape[1] * getattr(getattr(model.net, "config", None), "vocab_size", 1)
    few = max(2, VALUES // max(1, each))
    return {k: v[:few] for k, v in batch.items()}
