from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch
from trainlore.verbs import Part, method


def hardest(losses: Tensor, share: float) -> Tensor:
    """Which batches come next: the share (at least one) of them with the highest last losses (B,), in their own order."""
    count = max(1, int(share * len(losses) + 1e-9))
    return losses.argsort(descending=True, stable=True)[:count].sort().values


@method(
    name="hard_batches",
    title="DyBAT (training on high-loss mini-batches)",
    paper="arXiv:2304.03486",
    lit="p237",
    family="data/order",
    year=2023,
    tier="core",
    status="stable",
    code="imjohnzakkam/DyBAT",
)
class HardBatches(Part):
    """Train on every batch once, and from then on only on those that last had the highest losses.

    ## What it does
    The first pass goes through the data in batches, which are kept as they are, with the loss of each. Then, in rounds:
    the share `share` of all batches whose last loss is highest is trained on, and their losses are noted anew. A batch
    that is left out keeps the loss of when it was last seen, so its turn comes when the others have fallen below it.

        round:  top = share * B batches by loss,   train on each,   loss[top] <- new losses

    ## Claim
    Equal numbers of steps from random weights, no augmentation: ResNet-18 7.26 points better on CIFAR-100; on STL-10
    EfficientNet-B4 is as good in 26% fewer epochs. The authors' table for CIFAR-10 has it ahead for two of five networks
    and behind for three.

    ## Cost
    No pass of its own: the losses are those of training. One number and the row numbers of each batch are kept.

    ## Fields worth tuning
    `share`: 0.2 to 0.8 in the paper; small ones gave about the same accuracy sooner.

    ## Watch out
    The batches never change, and the order within a round is theirs: what shuffling gives is given up. Batches of many
    rows are all about equally hard, and then there is little to choose. Wrong labels have high losses for ever: a fifth
    of them in a batch and it is trained on again and again. On digits, in batches of 8, it made no difference
    here (n = 10).

    ## Differs from the paper
    As its code. Ours are `pool` and `rounds`, for data that is not passed many times: read `pool` batches, train so many
    rounds on the hard ones, read the next. The first pass is drawn as the engine and other parts have it.

    ## See also
    `rs2` for random subsets, `curriculum`.
    """

    share: float = 0.5
    """Share of the batches that a round trains on."""
    pool: int | None = None
    """Batches to choose from; a whole pass over the rows when left out."""
    rounds: int | None = None
    """Rounds before a new pool is read; to the end of training when left out."""

    null = {"share": 1.0}
    tiny = {"world": "digits", "pool": 4, "rounds": 1}

    def start(self, loop) -> dict:
        if not 0 < self.share <= 1:
            raise Bad(f"hard_batches: share must be above 0 and at most 1, got {self.share}")
        if (self.pool is not None and self.pool < 2) or (self.rounds is not None and self.rounds < 1):
            raise Bad(f"hard_batches: pool must be at least 2 and rounds at least 1, got {self.pool}, {self.rounds}")
        return {"rows": [], "losses": torch.zeros(0), "plan": [], "round": 0, "now": 0, "read": 0}

    def draw(self, loop, s, n: int, inner) -> Batch:
        if self.share == 1:
            return inner(n)
        size = self.pool or max(2, len(loop.data) // n)
        if s["read"] == size and not s["plan"]:
            if s["round"] == self.rounds:
                s["rows"], s["read"], s["round"] = [], 0, 0
            else:
                s["plan"], s["round"] = hardest(s["losses"], self.share).tolist(), s["round"] + 1
        if s["read"] < size:
            return self._new(s, inner(n))
        s["now"], s["plan"] = s["plan"][0], s["plan"][1:]
        return loop.data.batch(s["rows"][s["now"]].numpy(), loop.model)

    def watch(self, loop, s, record: dict[str, Any]) -> None:
        if s["rows"]:
            losses = s["losses"].clone()
            losses[s["now"]] = record["loss"]
            s["losses"] = losses

    def _new(self, s: dict, batch: Batch) -> Batch:
        """Remember a batch that is read for the first time: its rows of the data, without those other parts put in."""
        rows = batch["row"].cpu()
        s["now"], s["read"] = s["read"], s["read"] + 1
        s["rows"] = [*s["rows"], rows[rows >= 0].clone()]
        s["losses"] = torch.cat([s["losses"][: s["now"]], torch.zeros(1)])
        return batch
