"""Writing a model for other runtimes, and holding what they make of it against what it was.

Each format is a module with `write(model, folder)`, `logits(folder, batch)` in the runtime that will read it, and the
relative distance of the logits that its number format allows.
"""

from __future__ import annotations

import importlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.steps import distance

FORMATS = {  # name -> what it is, and the runtime that is asked whether it is right
    "hf": "a Hugging Face directory; read by transformers",
    "compressed-tensors": "a Hugging Face directory with packed weights, as vLLM reads; read by transformers",
    "gguf": "one file for llama.cpp; run by llama-cpp-python where it is installed, else read by transformers",
    "onnx": "one graph; run by onnxruntime",
    "masked": "safetensors with a bit a weight and the weights that are not zero; read by trainlore",
}

OURS = ("trainlore.json", "export.json")  # what a folder of ours holds


def module(form: str) -> Any:
    """The module of a format. Raises Bad for an unknown one and one whose packages are missing."""
    if form not in FORMATS:
        raise Bad(f"format {form!r} is not known: there are {', '.join(FORMATS)}")
    try:
        return importlib.import_module(f"trainlore.exports.{form.replace('-', '_')}")
    except ImportError as error:
        raise Bad(f"format {form} needs the package {error.name}: pip install 'trainlore[export]'") from None


def write(model: Model, to: Path, form: str, force: bool = False) -> dict[str, Any]:
    """Write the model, let the other runtime read it, and compare: the record of the gate. What fails it is removed."""
    there = module(form)
    if to.exists() and not force:
        raise Bad(f"{to} exists: say --force to replace it")
    if to.is_file() or (to.is_dir() and any(to.iterdir()) and not any((to / n).exists() for n in OURS)):
        raise Bad(f"{to} is there and is no model saved by trainlore, so it is not replaced: choose another place")
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    if form != "hf":
        part.mkdir(parents=True)
    try:
        there.write(model, part)
        batch = rows_for(model)
        with torch.no_grad():
            before = model(batch).float()
            took = _seconds(lambda: model(batch))
        after, took_there = there.logits(part, batch, model)
        found = distance(before, after)
        allowed = there.tolerance(model)
        if not found <= allowed:
            raise Bad(
                f"{form}: what was written gives other outputs in its runtime (relative distance {found:.2g}, "
                f"{allowed:.2g} allowed): removed"
            )
        record = {
            "format": form,
            "runtime": there.RUNTIME(),
            "distance": found,
            "tolerance": allowed,
            "bytes_before": sum(p.numel() * p.element_size() for p in model.net.parameters()),
            "bytes": sum(f.stat().st_size for f in part.rglob("*") if f.is_file()),
            "tokens_per_second_before": batch[model.input].numel() / took,
            "tokens_per_second": batch[model.input].numel() / took_there,
            **_loss_change(model, batch, before, after),
        }
        (part / "export.json").write_text(json.dumps(record, indent=1))
        if to.is_dir():
            shutil.rmtree(to)
        part.rename(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def rows_for(model: Model) -> dict[str, Any]:
    """A few rows that the model can read: those of its training that it kept, else made up."""
    if model.input == "pixel_values":
        c: Any = model.net.config
        pixels = torch.rand(2, c.num_channels, c.image_size, c.image_size, generator=Run(0).rng("export"))
        return {"pixel_values": pixels, "row": torch.arange(2)}
    if model.probe is None or model.input not in model.probe or model.kind == "seq2seq":
        vocab = getattr(model.net.config, "vocab_size", 2)
        ids = torch.randint(vocab, (2, 16), generator=Run(0).rng("export"))
        made = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "row": torch.arange(2)}
        return made | ({"labels": ids} if model.kind in ("causal", "masked", "seq2seq") else {})
    return model.probe


def timed(run: Any) -> tuple[Any, float]:
    """What `run()` gives the second time, and the seconds that took."""
    run()
    start = time.perf_counter()
    return run(), time.perf_counter() - start


def _seconds(run: Any) -> float:
    return timed(run)[1]


def _loss_change(model: Model, batch: dict[str, Any], before: Tensor, after: Tensor) -> dict[str, float]:
    """Mean row loss before and after on the same rows, where they have labels."""
    from trainlore.primitives import losses as L

    if "labels" not in batch or model.kind in ("encoder", "denoiser"):
        return {}
    was, now = (L.per_row(L.rowwise(model.kind, batch, out), batch, model.kind) for out in (before, after))
    return {"loss_before": float(was.mean()), "loss_change": float((now - was).mean())}
