"""Blocks that are known part by part: their layers and sizes, the range of what norms give in them, and how it is moved."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainlore.nouns import Batch, Model
from trainlore.primitives.anatomy import Feed, bodies
from trainlore.primitives.calibrating import rows_read
from trainlore.primitives.masks import weight_of
from trainlore.primitives.shrinking import count


def inside(model: Model) -> dict[str, nn.Module]:
    """The layers inside the blocks, by path: those around heads and around neurons."""
    parts = [p for b in bodies(model) for p in (*b.heads_in, b.heads_out, *b.neurons_in, b.neurons_out)]
    return {path: model.net.get_submodule(path) for path in parts}


@torch.no_grad()
def spread(model: Model, paths: Collection[str], batches: Sequence[Batch]) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Mean, smallest and largest value of each input (in,) float32 of these layers, by path; padding left out."""
    sums: dict[str, list[Tensor]] = {}
    real: Tensor | None = None

    def hear(path: str) -> Any:
        def hook(layer: nn.Module, args: tuple[Any, ...]) -> None:
            x = rows_read(layer, args[0], real).float()
            new = [x.sum(0), x.new_tensor(len(x)), x.amin(0), x.amax(0)]
            old = sums.get(path)
            merge = (torch.add, torch.add, torch.minimum, torch.maximum)
            sums[path] = new if old is None else [f(a, b) for f, a, b in zip(merge, old, new, strict=True)]

        return hook

    hooks = [model.net.get_submodule(path).register_forward_pre_hook(hear(path)) for path in paths]
    try:
        for batch in batches:
            real = batch["attention_mask"].bool() if "attention_mask" in batch else None
            model(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {path: (total / count, low, high) for path, (total, count, low, high) in sums.items()}


def biased(net: nn.Module, feed: Feed) -> bool:
    """Whether source and readers all have a bias, so that what the source gives can be moved."""
    return all(getattr(net.get_submodule(path), "bias", None) is not None for path in (feed.source, *feed.readers))


@torch.no_grad()
def shift(net: nn.Module, feed: Feed, by: Tensor) -> None:
    """Let the source give `by` (channels,) less, which its readers make up for: the same outputs. They must be `biased`."""
    net.get_submodule(feed.source).bias.sub_(by)
    for path in feed.readers:
        layer = net.get_submodule(path)
        layer.bias.add_(weight_of(layer).float() @ by)


def sizes(model: Model) -> dict[str, list[int]]:
    """What each block has: "groups" (heads of keys and values) and "neurons", as they are now."""
    found = bodies(model)
    return {"groups": [b.groups for b in found], "neurons": [count(model.net, b) for b in found]}


def even(model: Model) -> bool:
    """Whether all blocks have equally many of both."""
    return len(set(zip(*sizes(model).values(), strict=True))) <= 1
