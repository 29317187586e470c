from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Data
from trainlore.verbs import Part, method


@method(
    name="replay",
    title="Experience replay",
    paper="arXiv:1902.10486",
    family="train/continual",
    year=2019,
    tier="core",
    status="stable",
)
class Replay(Part):
    """Fill a share of every batch with rows kept from earlier data.

    ## What it does
    Draws n - round(share * n) rows of the new data as the engine would, and round(share * n) rows of `memory`, uniformly
    with replacement, and trains on both together:

        batch = new rows + rows of the memory,      loss = their mean

    ## Claim
    Classes or tasks in sequence, each row seen once: training jointly with a tiny memory beats methods made for continual
    learning; one stored row a class is worth 7 to 17 points over not storing any.

    ## Cost
    Nothing beyond the memory: the batch keeps its size, so new data is seen that much more slowly.

    ## Fields worth tuning
    `share` (the paper takes one row of memory for each new one: 0.5), and how the memory is chosen.

    ## Watch out
    A memory in the same columns as the data is needed; others are an error, not silently dropped. Rows of the memory carry
    row -1, so that parts which look rows up by position (curricula, scores) must leave them alone.

    ## Differs from the paper
    The memory is given whole and does not change while training; the paper's writes to it (reservoir, ring, k-means) are
    selections made beforehand.

    ## See also
    `ewc`, `lae`
    """

    memory: Data
    """Rows of earlier data, with the columns of the new."""
    share: float = 0.5
    """Share of the batch that comes from the memory."""

    ranges = {"share": [0.1, 0.7]}
    null = {"share": 0.0}
    tiny = {"world": "digits", "memory": "$test", "share": 0.5}

    def draw(self, loop: Any, s: dict[str, Any], n: int, inner: Callable[[int], Batch]) -> Batch:
        if not 0 <= self.share < 1:
            raise Bad(f"share must be from 0 to below 1, not {self.share}")
        old = round(self.share * n)
        if not old:
            return inner(n)
        rows = torch.randint(len(self.memory), (old,), generator=loop.rng("replay", loop.t)).numpy()
        past = self.memory.take(rows)
        if loop.model.input == "input_ids" and "input_ids" not in past.columns:
            past = loop.model.encode(past, truncate=True)
        return joined(inner(n - old), past.batch(range(old), loop.model), loop.model.tokenizer)

    def start(self, loop: Any) -> dict[str, Any]:
        if self.share and not len(self.memory):
            raise Bad("memory has no rows: give some, or share=0")
        return {}


def joined(new: Batch, past: Batch, tokenizer: Any = None) -> Batch:
    """The rows of both batches, sequences padded to the longer one; every column of `new` must be in `past`."""
    if missing := sorted(new.keys() - past.keys()):
        raise Bad(f"memory has no column {', '.join(missing)}, which the data has; it has {', '.join(sorted(past))}")
    past = {**past, "row": torch.full_like(past["row"], -1)}  # they are no rows of the data
    both = {}
    for name, mine in new.items():
        pad = -100 if name.endswith("labels") else -1 if name.endswith("segment_ids") else 0
        if name.endswith("input_ids") and tokenizer is not None:
            pad = tokenizer.pad_token_id or 0
        width = max(mine.shape[1], past[name].shape[1]) if mine.dim() == 2 else 0
        both[name] = torch.cat([widened(mine, width, pad), widened(past[name], width, pad)])
    return both


def widened(values: Tensor, width: int, pad: int) -> Tensor:
    """(B,T) padded on the right to (B,width); anything but rows of equal length stays as it is."""
    return values if values.dim() != 2 else F.pad(values, (0, width - values.shape[1]), value=pad)
