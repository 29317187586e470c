"""Which weights stay: masks by score over everything, a layer or a block at a time; how dense a layer should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.primitives.reparam import turned

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def matrices(net: nn.Module, targets: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The linear and convolution layers that compression may touch, by path: those whose path ends in one of `targets`.

    With none named: all but the output head, what shares its weight with an embedding, and the second of two layers
    that share one weight (a shared weight is compressed once).
    """
    all_ = {path: m for path, m in net.named_modules() if isinstance(m, (nn.Linear, *CONVOLUTIONS)) or turned(m)}
    if idle := [t for t in targets if not any(f".{path}".endswith(f".{t}") for path in all_)]:
        ends = sorted({path.rpartition(".")[2] for path in all_})
        raise Bad(f"targets: no layer's path ends in {', '.join(idle)}; they end in {', '.join(ends)}")
    get_head = getattr(net, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    head = head if head is not None else next(reversed(all_.values()), None)
    seen = set() if targets else {id(m.weight) for m in net.modules() if isinstance(m, nn.Embedding)}
    found = {}
    for path, m in all_.items():
        wanted = any(f".{path}".endswith(f".{t}") for t in targets) if targets else m is not head
        if wanted and id(stored(m)) not in seen:
            seen.add(id(stored(m)))
            found[path] = m
    if not found:
        raise Bad(f"{type(net).__name__} has no layer to compress but its output head: name one in `targets`")
    return found


def stored(layer: nn.Module) -> nn.Parameter:
    """The weight a layer keeps, under whatever parametrization of torch.

    Raises Bad where it keeps several tensors in the place of one, as torch's weight_norm does (a length and a direction).
    """
    if not parametrize.is_parametrized(layer, "weight"):
        return layer.weight
    kept = layer.parametrizations.weight  # type: ignore[union-attr]
    if not hasattr(kept, "original"):
        how = ", ".join(type(one).__name__.strip("_") for one in kept)
        raise Bad(
            f"a {type(layer).__name__} keeps its weight in {kept.ntensors} tensors ({how}): `fold` the model first"
        )
    return kept.original


def plain(layers: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The same layers, refusing those whose weight is computed from others: what is written to it would be lost."""
    for path, layer in layers.items():
        if parametrize.is_parametrized(layer, "weight") or not isinstance(layer.weight, nn.Parameter):
            raise Bad(f"the weight of {path} is computed from others: `fold` the model first, or name other targets")
    return dict(layers)


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight as a matrix (out, in): of a convolution (out, in * kernel), of a turned layer turned back."""
    weight = stored(layer).detach()
    return weight.T if turned(layer) else weight.flatten(1)


@torch.no_grad()
def write(layer: nn.Module, matrix: Tensor) -> None:
    """Put a matrix (out, in) in the place of the layer's weight."""
    weight = layer.weight
    weight.copy_(matrix.T if turned(layer) else matrix.reshape(weight.shape))


def share(name: str, value: float, low: float = 0.0) -> float:
    """`value`, if it is a share in (low, 1]; else an error that names the field."""
    if not low < value <= 1:
        raise Bad(f"{name}={value} is not a share: give {low} < {name} <= 1 (1 keeps everything)")
    return value


def count(total: int, keep: float) -> int:
    """How many of `total` a share keeps: the nearest whole number, halves up."""
    return min(total, int(keep * total + 0.5))


def top(scores: Tensor, keep: float | int) -> Tensor:
    """Mask of the largest scores: exactly round(keep * n) of them (a share), or exactly `keep` (an int).

    scores: any shape, real. Returns bool of that shape. Equal scores: the earlier position wins, so the count is exact
    and the result does not depend on the device. One selection, no sort: O(n).
    """
    flat = scores.detach().flatten()
    k = keep if isinstance(keep, int) else count(flat.numel(), keep)
    if k <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    if k >= flat.numel():
        return torch.ones_like(scores, dtype=torch.bool)
    least = (
        flat.float().kthvalue(flat.numel() - k + 1).values
        if flat.dtype.itemsize < 4
        else (flat.kthvalue(flat.numel() - k + 1).values)
    )
    mask = flat > least
    ties = (flat == least).nonzero().flatten()
    mask[ties[: k - int(mask.sum())]] = True
    return mask.view(scores.shape)


def top_pattern(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask of the n largest scores of every m neighbours along the inputs, as 2:4 hardware wants: (out, in) -> bool.

    Of equal scores the earlier stays. Raises Bad where m does not divide the inputs.
    """
    if not 0 < n <= m:
        raise Bad(f"pattern {n}:{m} keeps {n} of {m}: give n from 1 to m, as in 2:4")
    if scores.shape[1] % m:
        raise Bad(f"a layer with {scores.shape[1]} inputs cannot be cut in runs of {m}: leave it out of `targets`")
    runs = scores.detach().unflatten(1, (-1, m))
    order = runs.sort(dim=-1, descending=True, stable=True).indices[..., :n]
    return torch.zeros_like(runs, dtype=torch.bool).scatter_(-1, order, True).flatten(1)


def pattern_of(text: str) -> tuple[int, int] | None:
    """(n, m) of a pattern written "n:m"; None for an empty text."""
    if not text:
        return None
    n, colon, m = text.partition(":")
    if not (colon and n.isdigit() and m.isdigit() and 0 < int(n) <= int(m)):
        raise Bad(f"pattern={text!r} is not n:m, such as 2:4 (2 of every 4 neighbours stay)")
    return int(n), int(m)


def top_global(scores: Mapping[str, Tensor], keep: float | int) -> dict[str, Tensor]:
    """Masks of the largest scores over all tensors together (one pooled ranking)."""
    flat = torch.cat([s.detach().flatten() for s in scores.values()])
    parts = top(flat, keep).split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape).clone() for (name, s), part in zip(scores.items(), parts, strict=True)}


def top_layers(scores: Mapping[str, Tensor], keep: float | Mapping[str, float]) -> dict[str, Tensor]:
    """Masks of the largest scores of each tensor by itself; `keep` is one share or one per name."""
    return {name: top(s, keep[name] if isinstance(keep, Mapping) else keep) for name, s in scores.items()}


def grid_of(shape: Sequence[int], block: Sequence[int]) -> tuple[int, int, int, int]:
    """(rows of blocks, columns of blocks, rows in a block, columns in a block) of a matrix (out, everything else).

    A block side of 0 is the whole side: (1, 0) are whole rows, (0, 1) whole columns. Sides that do not divide the
    matrix leave smaller blocks at its lower and right edge.
    """
    rows, cols = shape[0], prod(shape[1:])
    r, c = block[0] or rows, block[1] or cols
    if r < 0 or c < 0:
        raise Bad(f"block={tuple(block)} has a negative side; give sizes >= 1, or 0 for a whole row or column")
    r, c = min(r, rows), min(c, cols)
    return -(-rows // r), -(-cols // c), r, c


def pool_blocks(values: Tensor, block: Sequence[int]) -> Tensor:
    """Sum of each block of a matrix: (out, ...) -> (blocks down, blocks across)."""
    down, across, r, c = grid_of(values.shape, block)
    flat = values.flatten(1)
    flat = nn.functional.pad(flat, (0, across * c - flat.shape[1], 0, down * r - flat.shape[0]))
    return flat.view(down, r, across, c).sum((1, 3))


def spread_blocks(values: Tensor, block: Sequence[int], shape: Sequence[int]) -> Tensor:
    """One value a block to one value an element: (blocks down, blocks across) -> `shape`. Differentiable."""
    _, _, r, c = grid_of(shape, block)
    full = values.repeat_interleave(r, 0)[: shape[0]].repeat_interleave(c, 1)[:, : prod(shape[1:])]
    return full.reshape(tuple(shape))


def erk(shapes: Mapping[str, Sequence[int]], density: float, power: float = 1.0) -> dict[str, float]:
    """Erdos-Renyi(-kernel) densities: layers in proportion to (sum of sides / product of sides)^power.

    Scaled so that the densities together keep `density` of all weights; a layer that would need more than
    all of its weights is left dense and the rest is shared again (fixed point, as many rounds as dense layers).
    """
    share("density", density)
    size = {name: prod(s) for name, s in shapes.items()}
    raw_density = {name: (sum(s) / prod(s)) ** power for name, s in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(size):
        left = density * sum(size.values()) - sum(size[name] for name in dense)
        scale = left / sum(raw_density[name] * size[name] for name in size if name not in dense)
        over = {name for name in size if name not in dense and scale * raw_density[name] > 1}
        if not over:
            return {name: 1.0 if name in dense else scale * raw_density[name] for name in size}
        top_raw = max(raw_density[name] for name in over)
        dense |= {name for name in over if raw_density[name] == top_raw}
    return dict.fromkeys(size, 1.0)


def cubic(done: float, begin: float, end: float) -> float:
    """From `begin` to `end`: end + (begin - end) * (1 - done)^3, fast while there is much left to lose."""
    return end + (begin - end) * (1 - min(1.0, max(0.0, done))) ** 3


def sparsity(tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Share of exact zeros by name, and over all under "total"."""
    zeros = {name: int((t == 0).sum()) for name, t in tensors.items()}
    size = {name: t.numel() for name, t in tensors.items()}
    total = sum(zeros.values()) / max(1, sum(size.values()))
    return {"total": total, **{name: zeros[name] / max(1, size[name]) for name in size}}
