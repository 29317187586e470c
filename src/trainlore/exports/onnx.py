"""One ONNX graph from token ids or pixels to logits, of any number of rows and any length."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.exports import own_arithmetic, timed
from trainlore.exports.rows import made
from trainlore.nouns import Model
from trainlore.steps import SAME

NAMES = ("input_ids", "attention_mask", "pixel_values", "features")


def RUNTIME(model: Model) -> str:
    """What runs it."""
    return f"onnxruntime {onnxruntime.__version__}"


def tolerance(model: Model, batch: dict[str, Any]) -> float:
    """The same weights in float32, other kernels."""
    return SAME + own_arithmetic(model, batch)


class _Logits(nn.Module):
    """Inputs by position, logits alone."""

    def __init__(self, model: Model, names: list[str]) -> None:
        super().__init__()
        self.net, self.names = copy.deepcopy(model.net).float().eval(), names
        config = getattr(self.net, "config", None)
        if config is not None and hasattr(config, "use_cache"):
            config.use_cache = False

    def forward(self, *given: Tensor) -> Tensor:
        if self.names == ["features"]:
            return self.net(given[0])
        out = self.net(**dict(zip(self.names, given, strict=True)))
        return out.logits if hasattr(out, "logits") else out.last_hidden_state


def write(model: Model, folder: Path) -> None:
    """Trace the network and write model.onnx beside its tokenizer."""
    if model.kind == "seq2seq":
        raise Bad("onnx holds one graph, and a seq2seq model writes in two: use hf")
    batch = made(model)
    names = [n for n in NAMES if n in batch]
    given = tuple(batch[n][:2] for n in names)
    rows, length = (
        torch.export.Dim("rows", min=1, max=4096),
        torch.export.Dim("length", min=2, max=model.window or 4096),
    )
    shapes = tuple({0: rows, 1: length} if n in ("input_ids", "attention_mask") else {0: rows} for n in names)
    shell = _Logits(model, names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            graph: Any = torch.onnx.export(
                shell,
                given,
                dynamo=True,
                dynamic_shapes=(shapes,),
                input_names=names,
                output_names=["logits"],
                verbose=False,
            )
        except Exception as error:
            first = str(error).strip().splitlines()[0][:200]
            raise Bad(f"{type(model.net).__name__} could not be traced for onnx ({first}): use hf") from error
    graph.save(str(folder / "model.onnx"))
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)


def logits(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits that onnxruntime gives, and the seconds of one pass."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    feed = {i.name: batch[i.name].numpy() for i in session.get_inputs()}
    (out,), seconds = timed(lambda: session.run(["logits"], feed))
    return torch.from_numpy(out).float(), seconds
