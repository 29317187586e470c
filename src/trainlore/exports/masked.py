"""Pruned weights without their zeros: a bit a weight, and the values that are left."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainlore.errors import Bad
from trainlore.exports import timed
from trainlore.nouns import Model
from trainlore.steps import SAME

DENSE = 0.97  # above this share of values the bits cost more than they save


def RUNTIME(model: Model) -> str:
    """What reads it."""
    return "trainlore"


def tolerance(model: Model, batch: dict[str, Any]) -> float:
    """The very same weights: only sums may run in another order."""
    return SAME / 1000


def write(model: Model, folder: Path) -> None:
    """The directory of `Model.save` with its weights stored sparsely."""
    inside = folder / "model"
    model.save(inside)
    found = list(inside.glob("*.safetensors"))
    sparse, shapes = {}, {}
    for file in found:
        for name, value in load_file(file).items():
            keep = value != 0
            if not value.is_floating_point() or not value.numel() or keep.float().mean() > DENSE:
                sparse[name] = value
                continue
            bits = np.packbits(keep.flatten().numpy(), bitorder="little")
            sparse[f"{name}.mask"] = torch.from_numpy(bits)
            sparse[f"{name}.values"] = value[keep]
            shapes[name] = list(value.shape)
        file.unlink()
    if not shapes:
        raise Bad("no weight of this model has zeros to leave out: prune it first (`wanda`, `sparsegpt`, `magnitude`)")
    save_file(sparse, inside / "masked.safetensors", metadata={"shapes": json.dumps(shapes)})
    for file in list(inside.iterdir()):
        file.rename(folder / file.name)
    inside.rmdir()


def read(folder: Path) -> dict[str, Tensor]:
    """The weights (name -> tensor) that a folder of this form holds, zeros put back."""
    from safetensors import safe_open

    with safe_open(folder / "masked.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["shapes"])
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        mask = np.unpackbits(state.pop(f"{name}.mask").numpy(), count=size, bitorder="little").astype(bool)
        values = state.pop(f"{name}.values")
        whole = torch.zeros(size, dtype=values.dtype)
        whole[torch.from_numpy(mask)] = values
        state[name] = whole.view(shape)
    return state


def whole(folder: Path, to: Path) -> Path:
    """Write the plain Hugging Face directory that a folder of this form stands for, zeros put back, to a new place."""
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("masked.safetensors", "export.*"))
    save_file(read(folder), to / "model.safetensors", metadata={"format": "pt"})
    return to


def logits(folder: Path, batch: dict[str, Any], model: Model) -> tuple[Tensor, float]:
    """The logits of the model that loads once its zeros are put back, and the seconds of one pass."""
    with tempfile.TemporaryDirectory() as place:
        back = Model.of(str(whole(folder, Path(place) / "whole")), kind=model.kind)
    with torch.no_grad():
        out, seconds = timed(lambda: back(batch))
    return out.float(), seconds
