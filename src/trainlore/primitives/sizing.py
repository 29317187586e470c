"""How many heads and neurons each block keeps: what sizes cost and lose, and the choice under a budget.

Built on `shrinking`, which takes them out.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.meter import Meter
from trainlore.nouns import Batch, Model
from trainlore.primitives.anatomy import Body, bodies
from trainlore.primitives.calibrating import second_moments, seen, walk
from trainlore.primitives.losses import aligned
from trainlore.primitives.masks import weight_of, write
from trainlore.primitives.obs import Surgeon, damped
from trainlore.primitives.shrinking import PARTS, columns, count, keep_heads, keep_neurons, ready, shrink
from trainlore.primitives.teaching import kl

# ---- what a size costs


def timed(
    model: Model,
    body: Body,
    part: str,
    sizes: Sequence[int],
    batch: Batch,
    by: str = "seconds",
    repeats: int = 7,
) -> np.ndarray:
    """What a block's heads or neurons cost when that many groups or neurons are left: (sizes,), on this batch.

    by "seconds": measured here, the median of `repeats` passes, each beside one of the first size, and smoothed so that
    more never costs less; "work": floating-point operations, counted by shape.
    Of neurons their layers with a GELU between them are run, of heads the attention with all it does.
    """
    if by not in ("seconds", "work") or part not in PARTS:
        raise Bad(f"by={by!r} must be seconds or work, and the part ({part!r}) heads or neurons")
    path = _attention(body) if part == "heads" else body.neurons_in[0]
    args, kwargs = seen(model, path, batch)
    x = args[0] if args else kwargs["hidden_states"]
    if by == "work":
        return np.array([_work(model.net, body, part, size, x) for size in sizes])
    first, taken, shares = _part(model, body, part, sizes[0], args, kwargs), [], [1.0]
    for size in sizes[1:]:  # each beside the first: what else the machine does slows both
        before, after = _seconds((first, _part(model, body, part, size, args, kwargs)), x.device, repeats)
        taken.append(before)
        shares.append(after / before)
    base = float(np.median(taken)) if taken else _seconds((first,), x.device, repeats)[0]
    return base * rising(np.asarray(sizes), np.array(shares))


def rising(sizes: np.ndarray, times: np.ndarray) -> np.ndarray:
    """The times nearest to these (n,) of which no larger size has a lower one: whoever picks the best picks no slip."""
    from sklearn.isotonic import isotonic_regression

    order = np.argsort(sizes, kind="stable")
    found = np.empty(len(times))
    found[order] = isotonic_regression(times[order].astype(np.float64))
    return found


def _part(model: Model, body: Body, part: str, size: int, args: tuple, kwargs: dict) -> Callable[[], Any]:
    """A run of a block's heads or neurons, that many of which are left, on what they are called with."""
    within, block = _within(body), copy.deepcopy(model.net.get_submodule(body.path)).eval()
    if part == "heads":
        keep_heads(block, within, torch.arange(size))
        attention = block.get_submodule(_attention(within))
        return lambda: attention(*args, **kwargs)
    keep_neurons(block, within, torch.arange(size))
    x = args[0] if args else kwargs["hidden_states"]
    return lambda: _through(block, within, x)


@torch.no_grad()
def whole(model: Model, batch: Batch, by: str = "seconds", repeats: int = 15) -> float:
    """What a pass of the whole model costs on this batch, in the unit of `timed`: with what no size changes in it.

    That is embeddings, norms, residuals and the head; of a small model they can be a third of a pass.
    """
    was = model.net.training
    model.net.eval()
    try:
        if by == "seconds":
            return _seconds((lambda: model(batch),), model.device, repeats, limit=10.0)[0]
        with Meter().running() as bill:
            model(batch)
        return bill.forward
    finally:
        model.net.train(was)


def table(
    model: Model, places: Sequence[tuple[int, str, Sequence[int]]], batch: Batch, by: str = "seconds"
) -> tuple[list[np.ndarray], float]:
    """What each place costs at each of its sizes, and what a pass of the model costs beside them.

    places: (number of the block, heads or neurons, sizes with the whole one first). A pass with a size chosen at every
    place costs the sum of theirs and the rest. Places of one shape are measured once.
    """
    found, known, rows, passes = bodies(model), {}, [], []
    for at, part, sizes in places:
        body = found[at]
        key = (part, body.heads, body.groups, body.width, tuple(sizes))
        if key not in known:
            known[key] = timed(model, body, part, sizes, batch, by)
            if by == "seconds":  # as a share of a pass, the two beside each other
                seconds, share = _beside(model, body, part, sizes[0], batch)
                known[key] = known[key] / known[key][0] * share
                passes.append(seconds)
        rows.append(known[key])
    if by == "seconds":
        total = float(np.median(passes)) if passes else whole(model, batch)
        rows = [row * total for row in rows]
    else:
        total = whole(model, batch, by)
    return rows, max(0.0, total - sum(float(row[0]) for row in rows))


def _beside(model: Model, body: Body, part: str, size: int, batch: Batch) -> tuple[float, float]:
    """Seconds of a pass of the model, and the share of it that a part of one block takes."""
    args, kwargs = seen(model, _attention(body) if part == "heads" else body.neurons_in[0], batch)
    was = model.net.training
    model.net.eval()
    try:
        runs = (lambda: model(batch), _part(model, body, part, size, args, kwargs))
        total, mine = _seconds(runs, model.device, 15, limit=10.0)
    finally:
        model.net.train(was)
    return total, mine / total


def _attention(body: Body) -> str:
    """The smallest module that holds all of a block's attention."""
    inside, outside = body.heads_in[0].split("."), body.heads_out.split(".")
    same = next(n for n, (a, b) in enumerate(zip(inside, outside, strict=False)) if a != b)
    return ".".join(inside[:same])


def _within(body: Body) -> Body:
    """The same body with its paths as seen from its block."""
    cut = len(body.path) + 1
    return replace(
        body,
        path="",
        heads_in=tuple(p[cut:] for p in body.heads_in),
        heads_out=body.heads_out[cut:],
        neurons_in=tuple(p[cut:] for p in body.neurons_in),
        neurons_out=body.neurons_out[cut:],
    )


def _through(block: nn.Module, body: Body, x: Tensor) -> Tensor:
    made = [block.get_submodule(path)(x) for path in body.neurons_in]
    return block.get_submodule(body.neurons_out)(F.gelu(made[0]) * made[1] if len(made) == 2 else F.gelu(made[0]))


@torch.no_grad()
def _seconds(
    runs: Sequence[Callable[[], Any]], device: torch.device, repeats: int, limit: float = 2.0
) -> tuple[float, ...]:
    """Medians of `repeats` turns of these runs, one after the other; of fewer, at least two, after `limit` seconds."""
    taken: list[list[float]] = []
    begun = time.perf_counter()
    while len(taken) <= repeats and (len(taken) < 3 or time.perf_counter() - begun < limit):  # the first warms up
        taken.append([_clock(run, device) for run in runs])
    return tuple(float(v) for v in np.median(taken[1:], axis=0))


def _clock(run: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _work(net: nn.Module, body: Body, part: str, size: int, x: Tensor) -> float:
    hidden = weight_of(net.get_submodule(body.heads_out)).shape[0]
    places = x.numel() // x.shape[-1]
    if part == "neurons":
        return 2.0 * places * hidden * size * (len(body.neurons_in) + 1)
    wide = size * (body.heads // max(1, body.groups)) * body.width
    return 2.0 * places * hidden * (2 * wide + 2 * size * body.width) + 4.0 * places * x.shape[-2] * wide


# ---- choosing sizes under a budget


def fit_budget(
    losses: Sequence[Sequence[float] | np.ndarray],
    times: Sequence[Sequence[float] | np.ndarray],
    budget: float,
    buckets: int = 10_000,
) -> list[int]:
    """One option a place, with the smallest sum of losses whose times add up to at most `budget`.

    Exact for times rounded to multiples of budget / buckets, by dynamic programming in O(buckets * all options); a choice
    that the rounding let slip over the budget is not taken. Of equal choices the quickest is.
    """
    if not budget > 0 or buckets < 1:
        raise Bad(f"the budget ({budget}) and its buckets ({buckets}) must be above 0")
    costs = [np.asarray(row, np.float64) for row in losses]
    spent = [np.asarray(row, np.float64) for row in times]
    steps = [np.rint(row * (buckets / budget)).astype(np.int64) for row in spent]
    best, picks = np.full(buckets + 1, np.inf), []
    best[0] = 0.0
    for row, step in zip(costs, steps, strict=True):
        now, pick = np.full(buckets + 1, np.inf), np.full(buckets + 1, -1)
        for option in np.argsort(step, kind="stable"):
            t = int(step[option])
            if t <= buckets:
                tried = np.concatenate([np.full(t, np.inf), best[: buckets + 1 - t] + row[option]])
                better = tried < now
                now[better], pick[better] = tried[better], option
        best = now
        picks.append(pick)
    limit = buckets
    while np.isfinite(best[: limit + 1]).any():
        at = limit = int(np.argmin(best[: limit + 1]))
        chosen: list[int] = []
        for pick, step in zip(reversed(picks), reversed(steps), strict=True):
            chosen.append(int(pick[at]))
            at -= int(step[chosen[-1]])
        chosen.reverse()
        if sum(row[one] for row, one in zip(spent, chosen, strict=True)) <= budget * (1 + 1e-9):
            return chosen
        limit -= 1
    least = sum(float(row.min()) for row in spent)
    raise Bad(f"nothing is that quick: the smallest sizes take {least:.4g}, and the budget is {budget:.4g}")


def weighted(judge: Callable[[np.ndarray], float], places: int, tries: int, rng: np.random.Generator) -> np.ndarray:
    """Weights (places,) with a low `judge(weights)`, as SPDY searches them.

    Ones or the best of `tries` random ones; then a tenth of them, and fewer, drawn anew for as long as one of the last
    `tries` was a gain.
    """
    best = np.ones(places)
    lowest = judge(best)
    for weights in rng.uniform(size=(tries, places)):
        if (loss := judge(weights)) < lowest:
            best, lowest = weights, loss
    for how_many in range(max(1, round(0.1 * places)), 0, -1):
        idle = 0
        while idle < tries:
            weights, idle = best.copy(), idle + 1
            weights[rng.integers(places, size=how_many)] = rng.uniform(size=how_many)
            if (loss := judge(weights)) < lowest:
                best, lowest, idle = weights, loss, 0
    return best


# ---- a database of sizes


@dataclass(frozen=True, eq=False)
class Level:
    """A layer at one size."""

    kept: Tensor
    """int64 (k,) the groups of its inputs that stay, ascending."""
    weight: Tensor
    """(out, k * inputs of a group), on the CPU."""
    error: float
    """|| (W' - W) X ||^2 / || W X ||^2 on the calibration rows."""


@dataclass(frozen=True, eq=False)
class Site:
    """The heads or the neurons of a block, with the layer that reads them at several sizes, the whole one first."""

    body: int
    part: str
    path: str
    groups: Tensor
    """int64 (groups, inputs of one)."""
    levels: tuple[Level, ...]


@torch.no_grad()
def database(
    model: Model, batches: list[Batch], sizes: Callable[[Body, str, int], Sequence[int]], damp: float = 0.01
) -> list[Site]:
    """Every block's heads and neurons at the sizes that `sizes(body, part, how many there are)` asks for.

    Groups are taken out one at a time, the one that costs least first, and what reads the others makes up for it
    (`Surgeon`). Calibrated on the net as it is, which is not changed. A part that is gone already is left out.
    """
    ready(model)
    found = bodies(model)
    wanted = {b.heads_out: (at, "heads") for at, b in enumerate(found) if b.groups}
    wanted |= {b.neurons_out: (at, "neurons") for at, b in enumerate(found) if count(model.net, b)}
    layers = {path: model.net.get_submodule(path) for path in wanted}
    sites = {}
    for unit in walk(model, layers, batches):
        for path, moments in second_moments(unit).items():
            at, part = wanted[path]
            groups = columns(model.net, found[at], part)
            asked = sizes(found[at], part, len(groups))
            sites[path] = Site(at, part, path, groups, _levels(weight_of(layers[path]), moments, groups, asked, damp))
    return sorted(sites.values(), key=lambda s: (s.body, s.part))


def _levels(weight: Tensor, moments: Tensor, groups: Tensor, sizes: Sequence[int], damp: float) -> tuple[Level, ...]:
    h, dead = damped(moments, damp)
    total = float(((weight.float().masked_fill(dead, 0.0) @ h) * weight.float()).sum())
    found = [Level(torch.arange(len(groups)), weight.clone().cpu(), 0.0)]
    try:
        surgeon = Surgeon(weight.float().masked_fill(dead, 0.0), h, groups.to(weight.device))
        for size in sorted({int(s) for s in sizes if 0 <= s < len(groups)}, reverse=True):
            while int(surgeon.left.sum()) > size:
                surgeon.take(int(surgeon.costs().argmin()))
            kept = surgeon.left.nonzero().flatten().cpu()
            left = surgeon.weight[:, groups[kept].flatten().to(weight.device)].to(weight.dtype).cpu()
            error = max(0.0, surgeon.error) / total if total > 0 else 0.0
            found.append(Level(kept, left, min(1.0, error) if size else 1.0))
    except torch.linalg.LinAlgError:
        raise Bad(f"damp={damp} is too small for these calibration rows: raise it, or give more rows") from None
    return tuple(found)


@torch.no_grad()
def put(net: nn.Module, site: Site, level: int) -> None:
    """Write a level into its layer in full width, zeros where groups are gone: what it computes when it is cut."""
    layer, one = net.get_submodule(site.path), site.levels[level]
    whole = torch.zeros_like(weight_of(layer))
    whole[:, site.groups[one.kept].flatten().to(whole.device)] = one.weight.to(whole)
    write(layer, whole)


def cut_to(model: Model, sites: Sequence[Site], levels: Sequence[int], told: bool = True) -> Model:
    """The model with every site at its level, heads and neurons that are gone taken out of all layers."""
    blocks = len(bodies(model))
    kept: dict[str, list[list[int] | None]] = {part: [None] * blocks for part in PARTS}
    for site, level in zip(sites, levels, strict=True):
        put(model.net, site, level)
        kept[site.part][site.body] = site.levels[level].kept.tolist()
    return shrink(model, kept["heads"], kept["neurons"], told)


# ---- how far a model has strayed


@torch.no_grad()
def answers(model: Model, batches: Sequence[Batch]) -> list[Tensor]:
    """What the model says of each batch: logits (B,K) or (B,T,V) that `strayed` compares with."""
    was = model.net.training
    model.net.eval()
    found = [aligned(model.kind, model(batch)).float() for batch in batches]
    model.net.train(was)
    return found


def strayed(model: Model, batches: Sequence[Batch], before: Sequence[Tensor]) -> float:
    """Mean over rows or real tokens of KL(before || now) in nats; of a model that names nothing, squared distance."""
    total, places = 0.0, 0.0
    for batch, theirs, mine in zip(batches, before, answers(model, batches), strict=True):
        if model.kind in ("encoder", "regressor", "denoiser"):
            gap = (mine - theirs).square().flatten(1).mean(1)
        else:
            gap = kl(mine, theirs)
        real = torch.ones_like(gap)
        if gap.dim() == 2 and "attention_mask" in batch:
            real = batch["attention_mask"][:, -gap.shape[1] :].to(gap)  # of a causal model: where a next token is
        total += float((gap * real).sum())
        places += float(real.sum())
    return total / max(1.0, places)
