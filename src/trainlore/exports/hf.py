"""A plain Hugging Face directory: every weight in the type it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainlore.exports import timed
from trainlore.nouns import Model
from trainlore.steps import SAME


def RUNTIME(model: Model) -> str:
    """What reads it."""
    import transformers

    return f"transformers {transformers.__version__}"


def tolerance(model: Model, batch: dict[str, Any]) -> float:
    """Nothing may change."""
    return SAME


def write(model: Model, folder: Path) -> None:
    """See `Model.save`."""
    model.save(folder)


def logits(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits of the model that loads from the folder, and the seconds of one pass."""
    back = Model.of(str(folder), kind=model.kind)
    with torch.no_grad():
        out, seconds = timed(lambda: back(batch))
    return out.float(), seconds
