from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.domains import mixed_rows
from trainlore.primitives.packing import pack_concat, pack_rows
from trainlore.primitives.rotary import raise_base
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def pools(sizes: np.ndarray, length: int, shortest: int) -> np.ndarray:
    """0 for documents (N,) below `shortest` tokens, 1 for longer ones below `length`, 2 for those that fill a row."""
    return np.where(sizes >= length, 2, np.where(sizes >= shortest, 1, 0))


def pool_shares(long: float, full: float, middle: bool) -> np.ndarray:
    """The share of the rows from each pool (3,): 1 - long of short documents, `full` of the long ones fill their row.

    The rest of the long ones is from the middle, if that has documents; else all of them fill their row.
    """
    rest = 1 - full if middle else 0.0
    return np.array([1 - long, long * rest, long * (1 - rest)])


@method(
    name="long_context_mix",
    title="ProLong",
    paper="arXiv:2410.02660",
    lit="p319",
    family="data/mix",
    year=2024,
    tier="llm",
    status="stable",
    code="princeton-nlp/ProLong",
)
class LongContextMix(Fit):
    """Lengthen a model's context in stages, on a mixture of long documents with short ones packed together.

    ## What it does
    Each stage raises the base of the rotary positions, packs all documents into rows of its length, in which documents
    do not see each other, and goes on training on rows drawn by pool.

        short     fewer tokens than lengths[0]                     1 - long
        middle    at least lengths[0], fewer than the length       long * (1 - full)
        full      at least the length: only whole rows of them     long * full

    In the first stage no document is in the middle, and all long rows are full ones.

    ## Claim
    Llama-3-8B, 20B tokens at 64K and 20B at 512K: best of its size at 128K, ahead of Llama-3.1-8B-Instruct in most long
    tasks with 5% of its long training. Six long documents to four good short ones beat long ones alone; rows longer than
    those it will be asked about help.

    ## Cost
    The stages' trainings; attention in a row of L tokens grows with L * L where the kernel knows no documents.

    ## Fields worth tuning
    `long`; `bases`, which belong to the model and its lengths. `inner`: the authors take a cosine to a tenth after a tenth
    of warmup in both stages. `uniform_mixture` in `inner` balances the domains, for rows keep the column `by`.

    ## Watch out
    Judge it by long tasks, after instruction tuning: perplexity goes on falling where they do not. Long documents alone
    cost short skills: 0.29 nats on short texts here. Code repositories, files joined, and books made good long ones. Ends
    of long documents that fill no row are dropped. The model's window and base are changed for good.

    ## Differs from the paper
    Within a pool rows are drawn by its tokens (theirs: half code and half books of the long, a table of eight sources of
    the short; half of the code, a sixth of the books full, hence `full`). The second stage starts with a fresh optimizer.

    ## See also
    `concat_packing`, `best_fit_packing`.
    """

    lengths: tuple[int, ...] = (65536, 524288)
    """Tokens in a row, by stage."""
    bases: tuple[float, ...] = (8e6, 1.28e8)
    """Base of the rotary positions, by stage."""
    steps: tuple[int, ...] = (5000, 2500)
    """Steps of each stage."""
    rows: tuple[int, ...] = (64, 16)
    """Rows a step, by stage."""
    lr: tuple[float, ...] = (1e-5, 5e-6)
    """Learning rate of each stage."""
    long: float = 0.6
    """Share of the rows that is of long documents."""
    full: float = 1 / 3
    """Share of these, after the first stage, whose document is as long as the row."""
    inner: tuple[Part, ...] = ()
    """Parts of every stage's training."""
    by: str | None = None
    """Column that rows keep, if any: only documents that agree in it are packed together."""

    tiny = {
        "world": "text",
        "lengths": [32, 48],
        "bases": [1e4, 1e5],
        "steps": [3, 3],
        "rows": [8, 8],
        "lr": [3e-3, 1e-3],
    }

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        stages = (self.lengths, self.bases, self.steps, self.rows, self.lr)
        if not self.lengths or len({len(s) for s in stages}) > 1:
            found = [len(s) for s in stages]
            raise Bad(f"long_context_mix: lengths, bases, steps, rows and lr need one value a stage, not {found}")
        if list(self.lengths) != sorted(set(self.lengths)) or min(map(min, stages)) <= 0:
            raise Bad(f"long_context_mix: lengths={self.lengths} must rise, and all values of stages be above 0")
        if not 0 <= self.long <= 1 or not 0 <= self.full <= 1:
            raise Bad(f"long_context_mix: long and full must lie in 0..1, got {self.long}, {self.full}")
        data.need(who="long_context_mix")
        if "input_ids" not in data.columns:
            data = model.encode(data, window=1 << 40)
        sizes = np.diff(data.lists("input_ids")[1])
        for i, (length, base, steps, size, lr) in enumerate(zip(*stages, strict=True)):
            rows, pool = self._rows(data, sizes, length, model)
            share = pool_shares(self.long, self.full, bool((pool == 1).any()))
            names = ("short", "middling", "long")
            if lost := [name for k, name in enumerate(names) if share[k] and not (pool == k).any()]:
                raise Bad(
                    f"long_context_mix: no document is {' or '.join(lost)} at length {length}: they have {sizes.min()} to "
                    f"{sizes.max()} tokens; change lengths, or set long to 0 or 1"
                )
            drawn = rows.take(mixed_rows(pool, share, steps * size, run.numpy("long_context_mix", i)))
            model = run.fit(raise_base(model, base, length), drawn, *self.inner, steps=steps, batch_size=size, lr=lr)
        return model

    def _rows(self, data: Data, sizes: np.ndarray, length: int, model: Model) -> tuple[Data, np.ndarray]:
        """Packed rows of all pools, and the pool of each (R,)."""
        pool, made, told = pools(sizes, length, self.lengths[0]), [], []
        for k in range(3):
            some = np.flatnonzero(pool == k)
            if len(some):
                rows: Any = pack_rows(data.take(some), length, _whole if k == 2 else pack_concat, model, self.by)
                made.append(rows)
                told.append(np.full(len(rows), k))
        return reduce(Data.join, made), np.concatenate(told)


def _whole(sizes: np.ndarray, length: int) -> Any:
    """Documents cut into whole rows, their ends dropped."""
    return pack_concat(sizes // length * length, length)
