"""Choosing rows one at a time so that together they cover, spread over or average like all of them.

Nothing here holds all pairs of rows: similarities are made a block at a time, and kept only where they fit in `ROOM`.
Of very many rows (a million and more) let the choice cover a random sample of them: give it as `reference`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf, isqrt, log
from typing import TYPE_CHECKING, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Batch, Data, Model
    from trainlore.runs import Run

__all__ = [
    "embeddings",
    "facility_location",
    "herding",
    "how_many",
    "k_centre",
    "layer_embeddings",
    "rank_within",
]

ROOM = 1 << 31  # bytes of similarities that are kept between the steps
BLOCK = 1 << 18  # similarities made at a time: on a CPU what stays in the cache of a core
ELSEWHERE = 1 << 22
WIDTH = 16  # candidates a lazy step looks at first, at least
GROWTH = 1.5  # and so many times as many when none of them will do
SHORT = 4096  # candidates of the highest gains, among which lazy steps look


def facility_location(
    features: Tensor,
    count: int,
    weights: Tensor | None = None,
    mode: Literal["lazy", "exact", "stochastic"] = "lazy",
    metric: Literal["cosine", "euclidean", "precomputed"] = "cosine",
    reference: Tensor | None = None,
    epsilon: float = 0.01,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Greedily the rows of `features` (N, D) nearest to which all others lie: positions (count,) in order, gains (count,).

        f(S) = sum over i of weights_i * max(0, max over j in S of similarity(i, j)),    gain = f(S + j) - f(S)

    Covered are the rows of `reference` (M, D), or the features themselves; `weights` (M,) >= 0. Similarity is the cosine, or
    the largest distance there could be less the distance ("euclidean"), or given: `features` is then (N, M), a row a
    candidate. On a tie the earlier row is taken.

    - lazy: old gains bound new ones, so few are computed again. As "exact", and the quickest for a short list.
    - exact: all gains are kept up to date; work grows with N * M * log(count), which suits a list of nearly all rows.
    - stochastic: the best of ceil(N / count * log(1 / epsilon)) random rows; in the mean at least 1 - 1/e - epsilon of the best.

    Gains are float64 and add up to f(S). Memory beyond a copy of the rows: the similarities where they take at most 2 GiB,
    else 20 bytes a row, whatever N and M are.
    """
    cover = _Cover(features, reference, metric, weights)
    if not 1 <= count <= cover.n:
        raise Bad(f"count={count}: give 1 to {cover.n}, the number of rows to choose from")
    if mode == "exact":
        return _exact(cover, count)
    if mode == "lazy":
        return _lazy(cover, count)
    if mode != "stochastic":
        raise Bad(f"mode={mode!r}: give 'lazy', 'exact' or 'stochastic'")
    if generator is None or not 0 < epsilon < 1:
        raise Bad(f"the stochastic mode needs a generator and 0 < epsilon < 1, got epsilon={epsilon}")
    return _stochastic(cover, count, ceil(cover.n / count * log(1 / epsilon)), generator)


class _Cover:
    """How well each row to be covered is covered so far (M,), and what any candidate would add."""

    def __init__(self, features: Tensor, reference: Tensor | None, metric: str, weights: Tensor | None) -> None:
        if metric not in ("cosine", "euclidean", "precomputed"):
            raise Bad(f"metric={metric!r}: give 'cosine', 'euclidean' or 'precomputed'")
        if features.ndim != 2 or not len(features):
            raise Bad(f"features must be (rows, dimensions) with at least one row, got {tuple(features.shape)}")
        x = features if features.is_floating_point() else features.float()
        y = x if reference is None else reference.to(x)
        self.metric, self.symmetric = metric, reference is None and metric != "precomputed"
        if metric == "cosine":
            x = torch.nn.functional.normalize(x, dim=1)
            y = x if reference is None else torch.nn.functional.normalize(y, dim=1)
        elif metric == "euclidean":  # around their middle, where the differences of squares lose least
            x, y = x - y.mean(0), y - y.mean(0)
            self.far = x.norm(dim=1).max() + y.norm(dim=1).max()
        self.x, self.y = x, y
        self.n, self.m = len(x), x.shape[1] if metric == "precomputed" else len(y)
        if weights is not None and (weights.shape != (self.m,) or not (weights >= 0).all()):
            raise Bad(f"weights must be {self.m} numbers of at least 0, one for each row to be covered")
        self.weights = None if weights is None else weights.to(x)
        self.best = x.new_zeros(self.m)
        self.block = BLOCK if x.device.type == "cpu" else ELSEWHERE
        self.tie = 1e-6 if x.dtype == torch.float32 else 1e-12  # gains this near are one: rounding must not choose
        self.kept: Tensor | None = x if metric == "precomputed" else None
        self.keeps = self.kept is None and self.n * self.m * x.element_size() <= ROOM  # from the first time on

    def _made(self, x: Tensor, y: Tensor) -> Tensor:
        if self.metric == "cosine":
            return x @ y.T
        return self.far - torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")

    def similar(self, candidates: Tensor | slice, rows: Tensor | slice) -> Tensor:
        """Similarities (candidates, rows), a fresh tensor; one of the two is given as a tensor."""
        if self.kept is None:
            return self._made(self.x[candidates], self.y[rows])
        if self.symmetric and isinstance(rows, Tensor):  # whole rows lie together in memory, columns do not
            return self.kept[rows][:, candidates].T
        return self.kept[:, rows][candidates]  # the slice first: it is a view, and the copy is of the block alone

    def gains(self, candidates: Tensor) -> Tensor:
        """What each of the candidates (B,) would add now: float64 (B,)."""
        if self.kept is not None:  # whole rows, a few at a time
            few = candidates.split(max(1, self.block // self.m))
            return torch.cat([self._more(self.kept.index_select(0, some), slice(None)) for some in few])
        total, x = torch.zeros(len(candidates), dtype=torch.float64, device=self.x.device), self.x[candidates]
        step = max(1, self.block // len(candidates))
        for a in range(0, self.m, step):
            rows = slice(a, a + step)
            total += self._more(self._made(x, self.y[rows]), rows)
        return total

    def _more(self, near: Tensor, rows: slice) -> Tensor:
        """What candidates this near (B,R) to these rows add by them; changes `near`."""
        near.sub_(self.best[rows]).relu_()
        if self.weights is not None:
            near.mul_(self.weights[rows])
        return near.sum(1).double()

    def first_gains(self) -> Tensor:
        """What every candidate would add while none is chosen: float64 (N,); keeps the similarities if it may."""
        total = torch.zeros(self.n, dtype=torch.float64, device=self.x.device)
        made = self.x.new_empty(self.n, self.m) if self.keeps else self.kept
        both = self.symmetric and made is None  # of rows that cover themselves, half of the pairs tell the other half
        side = isqrt(self.block)
        for i in range(0, self.n, side):
            some = slice(i, i + side)
            for a in range(i if both else 0, self.m, side):
                rows = slice(a, a + side)
                near = self._made(self.x[some], self.y[rows]) if self.kept is None else self.kept[some, rows].clone()
                if self.keeps:
                    made[some, rows] = near  # type: ignore[index]
                if both and a > i:
                    total[rows] += self._more(near.T.clone(), some)
                total[some] += self._more(near, rows)
        self.kept = made
        return total

    def add(self, j: int) -> tuple[float, Tensor, Tensor]:
        """Take candidate j: its gain, the rows (R,) that it covers better, and how they were covered before (R,)."""
        now = self.similar(torch.tensor([j], device=self.x.device), slice(0, self.m))[0]
        rows = (now > self.best).nonzero()[:, 0]
        before, more = self.best[rows], (now[rows] - self.best[rows]).double()
        self.best[rows] = now[rows]
        return float((more if self.weights is None else more * self.weights[rows]).sum()), rows, before


def _exact(cover: _Cover, count: int) -> tuple[Tensor, Tensor]:
    gain, chosen, gains = cover.first_gains(), [], []
    none = float(gain.max()) * (1e-9 if cover.x.dtype == torch.float32 else 1e-13)  # less is rounding
    for _ in range(count):
        best = gain.max()
        j = int((gain >= best * (1 - cover.tie)).nonzero()[0])
        got, rows, before = cover.add(j)
        chosen.append(j)
        gains.append(got)
        gain[j] = -torch.inf
        step = max(1, 16 * cover.block // cover.n)
        for a in range(0, len(rows), step):
            some, old = rows[a : a + step], before[a : a + step]
            lost = torch.minimum(cover.similar(slice(None), some), cover.best[some]).sub_(old).clamp_(min=0)
            if cover.weights is not None:
                lost.mul_(cover.weights[some])
            gain -= lost.sum(1)
        gain[(gain < none) & (gain > -torch.inf)] = 0
    return torch.tensor(chosen), torch.tensor(gains, dtype=torch.float64)


def _lazy(cover: _Cover, count: int) -> tuple[Tensor, Tensor]:
    # a gain never grows: the last one computed bounds what it is now
    bound, chosen, gains = cover.first_gains(), [], []
    fresh = torch.ones(cover.n, dtype=torch.bool, device=bound.device)
    # of the candidates that are not on the short list none is above its edge
    best, short, edge = float(bound.max()), bound.new_zeros(0, dtype=torch.long), inf
    for t in range(count):
        width = max(WIDTH, cover.n >> 11)  # of very many it takes many, and together they take less time
        while t:
            open_ = short[~fresh[short]]
            top = bound[open_].topk(min(int(width), len(open_)))
            stale = open_[top.indices[(top.values >= best * (1 - cover.tie)) & (top.values > 0)]]
            if len(stale):  # of a tie, too: the earlier row wins it
                bound[stale], fresh[stale], width = cover.gains(stale), True, width * GROWTH
                best = max(best, float(bound[stale].max()))
            elif edge > 0 and edge >= best * (1 - cover.tie):
                top = bound.masked_fill(fresh, -inf).topk(min(max(SHORT, cover.n >> 5), cover.n))
                short = torch.cat([top.indices, fresh.nonzero()[:, 0]])
                edge = float(top.values[-1]) if len(top.values) < cover.n else -inf
            else:
                break
        j = int((fresh & (bound >= best * (1 - cover.tie)) if best > 0 else bound > -inf).nonzero()[0])
        chosen.append(j)
        gains.append(cover.add(j)[0])
        fresh.zero_()
        bound[j], best = -inf, 0.0
    return torch.tensor(chosen), torch.tensor(gains, dtype=torch.float64)


def _stochastic(cover: _Cover, count: int, sample: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    free, chosen, gains = torch.ones(cover.n, dtype=torch.bool), [], []
    for _ in range(count):
        drawn = torch.randint(cover.n, (sample,), generator=generator).unique()
        drawn = drawn[free[drawn]]
        if not len(drawn):
            left = free.nonzero()[:, 0]
            drawn = left[torch.randint(len(left), (1,), generator=generator)]
        j = int(drawn[int(cover.gains(drawn.to(cover.x.device)).argmax())])
        free[j] = False
        chosen.append(j)
        gains.append(cover.add(j)[0])
    return torch.tensor(chosen), torch.tensor(gains, dtype=torch.float64)


def k_centre(
    features: Tensor,
    count: int,
    first: int | Sequence[int] | Tensor = 0,
    metric: Literal["cosine", "euclidean"] = "euclidean",
) -> tuple[Tensor, Tensor]:
    """Farthest first: `count` rows of `features` (N, D), each the farthest from those before: positions, distances (count,).

    `first`: the row or rows to begin with; they head the answer, at distance infinity. The largest distance of any row to
    its nearest centre is at most twice what the best `count` centres reach. Time N * D * count, memory N numbers.
    """
    start = torch.as_tensor(first, dtype=torch.long).reshape(-1)
    n = len(features)
    if not 1 <= count <= n or len(start) > count or not len(start):
        raise Bad(f"count={count}: give 1 to {n}, the number of rows, and at least the {len(start)} to begin with")
    x = features if features.is_floating_point() else features.float()
    if metric == "cosine":
        x = torch.nn.functional.normalize(x, dim=1)
    elif metric != "euclidean":
        raise Bad(f"metric={metric!r}: give 'cosine' or 'euclidean'")
    near = x.new_full((n,), torch.inf)
    for some in start.to(x.device).split(64):
        for a in range(0, n, BLOCK // 64):
            far = torch.cdist(x[a : a + BLOCK // 64], x[some], compute_mode="donot_use_mm_for_euclid_dist")
            near[a : a + BLOCK // 64] = torch.minimum(near[a : a + BLOCK // 64], far.amin(1))
    near[start.to(x.device)] = -1.0
    chosen, radii = start.tolist(), [torch.inf] * len(start)
    while len(chosen) < count:
        j = int(near.argmax())
        chosen.append(j)
        radii.append(float(near[j]))
        near = torch.minimum(near, torch.cdist(x, x[j : j + 1], compute_mode="donot_use_mm_for_euclid_dist")[:, 0])
        near[j] = -1.0  # below any distance: a copy of a centre may still come, the centre itself not
    return torch.tensor(chosen), torch.tensor(radii, dtype=torch.float64)


def herding(
    features: Tensor, count: int, metric: Literal["cosine", "euclidean"] = "euclidean"
) -> tuple[Tensor, Tensor]:
    """Rows whose mean follows the mean of all rows of `features` (N, D): positions (count,), distances of the means (count,).

    Greedily, without repetition: row t is the one with which the mean of the t rows is nearest to the mean of all,

        argmin over x of || mu - (chosen_1 + ... + chosen_{t-1} + x) / t ||,

    which among rows of one length is herding, argmax <w, x> with w = t mu - sum. "cosine" scales the rows to length 1.
    """
    n = len(features)
    if not 1 <= count <= n:
        raise Bad(f"count={count}: give 1 to {n}, the number of rows")
    x = features if features.is_floating_point() else features.float()
    if metric == "cosine":
        x = torch.nn.functional.normalize(x, dim=1)
    elif metric != "euclidean":
        raise Bad(f"metric={metric!r}: give 'cosine' or 'euclidean'")
    mean = x.mean(0, dtype=torch.float64)
    squares, sums = x.square().sum(1), torch.zeros_like(mean)
    chosen: list[int] = []
    apart: list[float] = []
    for t in range(1, count + 1):
        score = (2 * (x @ (t * mean - sums).to(x.dtype))).sub_(squares)
        score[chosen] = -torch.inf
        j = int(score.argmax())
        chosen.append(j)
        sums += x[j]
        apart.append(float((mean - sums / t).norm()))
    return torch.tensor(chosen), torch.tensor(apart, dtype=torch.float64)


def how_many(keep: float, rows: int) -> int:
    """The number of rows that a share `keep` of them is, at least one."""
    if not 0 < keep <= 1:
        raise Bad(f"keep={keep}: give a share of the rows, above 0 and at most 1")
    return max(round(keep * rows), 1)


def rank_within(group: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each row in its group by falling score, from 0, and the size of its group: int64 (N,) each.

    group: whole numbers from 0 (N,); score: (N,). Of equal scores the earlier row comes first.
    """
    order = np.lexsort((-score, group))
    size = np.bincount(group)
    rank = np.empty(len(group), np.int64)
    rank[order] = np.arange(len(group)) - (np.cumsum(size) - size)[group[order]]
    return rank, size[group]


def embeddings(run: Run, data: Data, encoder: Model | None, column: str, who: str) -> Tensor:
    """A vector for each row, float32 (N, D): what `encoder` makes of it, or what stands in `column`."""
    data.need(*([] if encoder is not None else [column]), who=who)
    if encoder is not None:
        found = run.embed(encoder, data).float()
    else:
        found = _vectors(data, column, who)
    if bad := int((~found.sum(1).isfinite()).sum()):
        where = f"column={column!r}" if encoder is None else f"encoder={encoder!r}"
        raise Bad(f"{who}: {where} gives vectors with values that are not finite for {bad} of {len(found)} rows")
    return found


def _vectors(data: Data, column: str, who: str) -> Tensor:
    """A column of vectors as one tensor of its own, filled a chunk of the table at a time: never held twice."""
    kind = data.table.schema.field(column).type
    if data.rows is not None or not pa.types.is_fixed_size_list(kind) or not pa.types.is_float32(kind.value_type):
        points = data[column]
        if getattr(points, "ndim", 0) != 2:
            raise Bad(f"{who}: column={column!r} holds no vectors; name a column of embeddings or give an encoder")
        return torch.tensor(np.ascontiguousarray(points, dtype=np.float32))
    found, at = torch.empty(len(data), kind.list_size), 0
    for chunk in data.table[column].chunks:
        values = chunk.flatten().to_numpy(zero_copy_only=False)
        if len(values) != len(chunk) * kind.list_size:
            raise Bad(f"{who}: column={column!r} has rows without a vector: leave them out first")
        found[at : at + len(chunk)].numpy()[:] = values.reshape(len(chunk), kind.list_size)
        at += len(chunk)
    return found


def layer_embeddings(run: Run, model: Model, data: Data, layer: int | None, who: str) -> Tensor:
    """What the network's block number `layer` (from 0; None: the last hidden states) puts out, mean over tokens: (N, D)."""
    if layer is None:
        return run.embed(model, data)
    blocks = model.blocks
    if not -len(blocks) <= layer < len(blocks):
        raise Bad(f"{who}: layer={layer}: the network has {len(blocks)}, 0 to {len(blocks) - 1}")
    seen: list[Tensor] = []

    def pooled(batch: Batch, out: Tensor) -> Tensor:
        hidden = seen.pop().float()
        mask = batch.get("attention_mask")
        mask = torch.ones(hidden.shape[:2], device=hidden.device) if mask is None else mask.float()
        return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)

    hook = blocks[layer].register_forward_hook(
        lambda m, args, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    try:
        return run.infer(model, data, pooled)
    finally:
        hook.remove()
