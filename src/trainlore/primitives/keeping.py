"""Keeping the best weights of a training: a part for methods that train and must choose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainlore.primitives.losses import per_row, rowwise
from trainlore.verbs import Part

if TYPE_CHECKING:
    from trainlore.nouns import Data

__all__ = ["Best"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Best(Part):
    """Hand on the weights most accurate on held-out rows (then of lowest loss), of the first ones and each `every` steps."""

    rows: Data
    every: int

    def start(self, loop: Any) -> dict[str, Any]:
        s: dict[str, Any] = {"score": [-1.0, 0.0], "weights": {}}
        self._look(loop, s)
        return s

    def watch(self, loop: Any, s: dict[str, Any], record: dict[str, Any]) -> None:
        if loop.t % self.every == 0 or loop.t == loop.steps:
            self._look(loop, s)

    def _look(self, loop: Any, s: dict[str, Any]) -> None:
        def judged(batch: dict[str, Any], out: Tensor) -> Tensor:
            loss = per_row(rowwise(loop.model.kind, batch, out), batch, loop.model.kind)
            return torch.stack([(out.argmax(-1) == batch["labels"]).float(), -loss], dim=1)

        score = loop.run.infer(loop.model, self.rows, judged).double().mean(0).tolist()
        if score > s["score"]:
            s["score"] = score
            s["weights"] = {k: v.detach().clone() for k, v in loop.model.net.state_dict().items()}

    def readout(self, loop: Any, s: dict[str, Any]) -> dict[str, Tensor]:
        return s["weights"]
