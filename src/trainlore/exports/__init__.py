"""Writing a model for other runtimes, and holding what they make of it against what it was.

Each format is a module with `write(model, folder)`, `logits(folder, batch, model)` in the runtime that will read it, and
`tolerance(model, batch)`, the relative distance of the logits that its number format allows.
"""

from __future__ import annotations

import importlib
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.masks import weight_of
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


def write(model: Model, to: Path, form: str, force: bool = False, data: Data | None = None) -> dict[str, Any]:
    """Write the model, let the other runtime read it, and compare: the record of the gate. What fails it is removed.

    The rows of the gate are the first of `data`, else those of the model's training that it kept, else ones that it
    writes itself or that are made up. `export.json` in the folder holds the record and `export.html` shows it.
    """
    from trainlore.exports import rows, telling

    there = module(form)
    if form != "onnx" and not hasattr(model.net, "save_pretrained"):
        raise Bad(f"{type(model.net).__name__} is no Hugging Face model, so {form} has no config for it: use onnx")
    if to.exists() and not force:
        raise Bad(f"{to} exists: say --force to replace it")
    if to.is_file() or (to.is_dir() and any(to.iterdir()) and not any((to / n).exists() for n in OURS)):
        raise Bad(f"{to} is there and is no model saved by trainlore, so it is not replaced: choose another place")
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    if form != "hf":
        part.mkdir(parents=True)
    was = model.net.training
    model.net.eval()
    try:
        there.write(model, part)
        batch, whose = rows.rows_for(model, data)
        with torch.no_grad():
            before, took = timed(lambda: model(batch).float())
        if not before[real := rows.real(model, batch, before)].isfinite().all():
            raise Bad("the model itself gives infinities or NaN: it is broken before it is exported")
        after, took_there = there.logits(part, batch, model)
        found = distance(before[real], after[real]) if before.shape == after.shape else float("inf")
        allowed = there.tolerance(model, batch)
        if not found <= allowed:
            raise Bad(
                f"{form}: what was written gives other outputs in its runtime (relative distance {found:.2g}, "
                f"{allowed:.2g} allowed): removed"
            )
        unit, many = rows.counted(model, batch)
        record = {
            "format": form,
            "model": type(model.net).__name__,
            "runtime": there.RUNTIME(model),
            "distance": found,
            "tolerance": allowed,
            "rows": {"count": len(before), "whose": whose},
            "bytes_before": sum(p.numel() * p.element_size() for p in model.net.parameters()),
            "bytes": sum(f.stat().st_size for f in part.rglob("*") if f.is_file()),
            "counted": unit,
            "threads": torch.get_num_threads(),
            "tokens_per_second_before": many / took,
            "tokens_per_second": many / took_there,
            **rows.change(model, batch, before, after),
        }
        (part / "export.json").write_text(json.dumps(record, indent=1))
        (part / "export.html").write_text(telling.page(record))
        if to.is_dir():
            shutil.rmtree(to)
        part.rename(to)
    finally:
        model.net.train(was)
        shutil.rmtree(part, ignore_errors=True)
    return record


def timed(run: Callable[[], Any], most: int = 5, enough: float = 0.5) -> tuple[Any, float]:
    """What `run()` gives, and the median seconds of a call: after one to warm up, `most` calls or `enough` seconds."""
    run()
    took: list[float] = []
    while not took or (len(took) < most and sum(took) < enough):
        start = time.perf_counter()
        given = run()
        took.append(time.perf_counter() - start)
    return given, statistics.median(took)


def on_grids(model: Model) -> dict[str, Any]:
    """The grids, by path, whose layers are there and still hold what was rounded: those that can be packed."""
    layers = dict(model.net.named_modules())
    return {path: grid for path, grid in model.grids.items() if path in layers and grid.holds(weight_of(layers[path]))}


def fresh(model: Model) -> Model:
    """A model of the same config with weights of its own, to read a state into: nothing of the old net is left in it.

    Raises Bad where the config does not describe the net."""
    from trainlore.primitives.shrinking import shaped

    net: Any = model.net
    with torch.random.fork_rng():
        made = shaped(type(net)(net.config)).eval()
    return Model(made.to(next(net.parameters()).dtype), model.kind)


def read_into(back: Model, state: dict[str, Tensor]) -> None:
    """Put weights by name into a fresh model. Raises Bad for names that it has not, or that are missing."""
    dtype = next(back.net.parameters()).dtype
    state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    told = back.net.load_state_dict(state, strict=False)
    kept = {id(p) for name, p in back.net.named_parameters(remove_duplicate=False) if name in state}
    named = dict(back.net.named_parameters(remove_duplicate=False))
    lost = [n for n in told.missing_keys if n not in named or id(named[n]) not in kept]
    if odd := [*lost, *told.unexpected_keys]:
        raise Bad(f"what was written does not fit the model's config ({odd[0]}): `fold` the model first, or use onnx")


def own_arithmetic(model: Model, batch: dict[str, Any]) -> float:
    """How far 16-bit arithmetic of the net itself is from that of float32: what no faithful runtime can do without."""
    if all(p.dtype == torch.float32 for p in model.net.parameters()):
        return 0.0
    exact = model.copy()
    exact.net.float()
    with torch.no_grad():
        return distance(exact(batch), model(batch).float())
