"""How much memory there is, how much a step will take of it, and what to say where it ends."""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from trainlore import meter
from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.placement import split, to
from trainlore.primitives import losses as L
from trainlore.slots import fills, takes_inner

TRIM, MMAP = -1, -3  # of glibc's malloc.h
ROOM = 1 << 30
CGROUPS = (  # the limit of a container, what it uses, and what of that are files that can be let go
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
ENDED = ("out of memory", "can't allocate memory", "not enough memory", "invalid buffer size")


def keep_freed() -> bool:
    """Let the C library keep freed blocks up to 1 GiB for the next step; whether it could be told so.

    By default glibc gives every large block back to the system at once: the logits of a step, taken and given back, cost
    about a tenth of a small model's step in page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, which has its own ways
        return False
    return bool(mallopt(MMAP, ROOM)) and bool(mallopt(TRIM, ROOM))


@dataclass(frozen=True)
class Settings:
    """What of a training's settings decides how much memory a step takes."""

    micro: int | None
    checkpoints: bool  # activations are computed again
    precision: torch.dtype
    whole: bool = False  # a part has one loss for the whole batch, which is not cut
    shares: int = 1  # processes that hold a share of every weight each


def available(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device; None where it does not say."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for its next tensor
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    free = int(psutil.virtual_memory().available)
    for limit, used, about, files in CGROUPS:
        with suppress(OSError, ValueError, KeyError):
            root = Path("/sys/fs/cgroup")
            idle = int(dict(line.split() for line in (root / about).read_text().splitlines())[files])
            free = min(free, int((root / limit).read_text()) - int((root / used).read_text()) + idle)
    return free


def needed(
    model: Model,
    rows: Batch,
    size: int,
    values: Callable[[Batch], Tensor],
    trained: Iterable[Tensor],
    shares: int = 1,
    numbers: int = 3,
) -> tuple[int, int]:
    """Bytes that a step will take beyond the weights: for `numbers` a weight (gradient and two moments), and by its rows.

    What `size` rows keep for the backward pass is measured on the first of `rows` and on all of them (two are enough), so
    that what does not grow with the rows, such as weights in another precision, is not counted with each.
    """
    own = {getattr(p, "_local_tensor", p).untyped_storage().data_ptr() for p in model.net.parameters()}

    def kept(batch: Batch) -> int:
        stores: dict[int, Any] = {}

        def keep(tensor: Tensor) -> Tensor:
            store = getattr(tensor, "_local_tensor", tensor).untyped_storage()
            if store.data_ptr() not in own:
                stores[store.data_ptr()] = store
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            held = values(batch)
        return sum(store.nbytes() for store in stores.values()) + 0 * held.numel()

    state = sum(numbers * p.numel() * p.element_size() for p in trained) // shares
    many = len(rows["row"])
    if many == 1:
        return state, kept(rows) * size
    one, all_ = kept(split(rows, 1)[0]), kept(rows)
    each = max(0.0, (all_ - one) / (many - 1))
    return state, int(max(0.0, one - each) + each * size)


def foreseen(loop: Any, settings: Settings, trained: list[Any], cast: Any, parts: Any, team: Any) -> None:
    """Raise Bad before the first step where its memory is not there, as far as the model's own loss can tell.

    Where parts change batches, passes or losses that is a guess, and only warned of; where one makes them all by itself,
    nothing is foreseen.
    """
    acting = [(p, s) for p in parts for s in ("draw", "batch", "forward", "loss") if fills(p, s)]
    if any(s != "batch" and not takes_inner(getattr(p, s)) for p, s in acting):
        return
    free = team.told(
        available(loop.device)
    )  # all decide alike: passes through weights that are shared out are made together
    model, size = loop.model, -(-loop.size // team.size)
    size = min(settings.micro or size, size)
    if free is None:
        return
    if 12 * sum(p.numel() for p in trained) < free // 64 and size * width_of(loop.data, model) < 1 << 20:
        return  # nowhere near
    try:
        with meter.unpaid(), loop.run.global_rng("room"), cast:
            rows = to(loop.data.batch(longest(loop.data, 2), model), loop.device)
            model.net.train(settings.checkpoints)  # batch norms are not to count these rows; recomputing is of training
            own = lambda b: L.rowwise(model.kind, b, model(b))
            numbers = 1 if any(fills(p, "optimizer") for p in parts) else 3
            state, kept = needed(model, rows, size, own, trained, settings.shares, numbers)
    except Exception as error:
        if ended(error):
            raise short(loop, settings) from error
        if acting:  # the model's own loss is not asked for here, and may have no meaning
            return
        raise
    finally:
        model.net.train()
    if state + kept <= free:
        return
    text = (
        f"a step {'may' if acting else 'would'} need about {(state + kept) / 1e9:.1f} GB beyond the weights "
        f"({state / 1e9:.1f} for gradients and moments, {kept / 1e9:.1f} for what {size} rows keep), and {free / 1e9:.1f} "
        f"GB are free on {loop.device}: {ways_out(model, loop.size, settings, state > free)}"
    )
    if not acting:
        raise Bad(text)
    warnings.warn(text, stacklevel=3)


def width_of(data: Data, model: Model) -> int:
    """Numbers in the longest row of what the model reads."""
    if "input_ids" in data.columns:
        return int(np.diff(data.lists("input_ids")[1]).max())
    first = data.take([0])[model.input] if model.input in data.columns else np.zeros((1, 0))
    return int(np.prod(np.shape(first)[1:]))


def longest(data: Data, n: int) -> np.ndarray:
    """Positions of the n longest rows."""
    n = min(n, len(data))
    if "input_ids" not in data.columns:
        return np.arange(n)
    length = np.diff(data.lists("input_ids")[1])
    return np.argpartition(-length, n - 1)[:n]


# ---- when it ends


def ended(error: BaseException) -> bool:
    """Whether memory ran out: CUDA has a class for it, Apple's devices and the processor say so in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in ENDED)


@contextmanager
def shortage_told(loop: Any, settings: Settings) -> Iterator[None]:
    """Where memory ends inside, the numbers and the ways out are told."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ended(error):
            raise
        raise short(loop, settings) from error


def short(loop: Any, settings: Settings) -> Bad:
    """Memory ran out: how much was there, and what to do."""
    free, held = available(loop.device), meter.peak_memory()
    return Bad(
        f"memory ran out at step {loop.t + 1} on {loop.device}: {held / 1e9:.1f} GB were held at most, "
        f"{(free or 0) / 1e9:.1f} GB are free now: {ways_out(loop.model, loop.size, settings)}"
    )


def ways_out(model: Model, size: int, settings: Settings, weights_first: bool = False) -> str:
    """The three cheapest ways to need less memory, from these settings on, of those that this network has.

    `weights_first`: what belongs to the weights is too much already, whatever the rows.
    """
    now, rows = settings.micro or size, []
    if now > 1 and not settings.whole:
        rows.append(f"micro_batch: {max(1, now // 4)} (the same gradient in smaller pieces)")
    if not settings.checkpoints and getattr(model.net, "supports_gradient_checkpointing", False):
        rows.append("checkpoint_activations: true (a third more work)")
    if settings.precision is torch.float32:
        rows.append("precision: bf16")
    if now > 1 and settings.whole:
        rows.append(f"batch_size: {max(1, now // 4)}")
    weights = ["adapters (`lora`) instead of all weights"]
    if settings.shares == 1:
        weights.append("shard: true on several devices (`torchrun`)")
    if model.input == "input_ids":
        rows.append("a shorter window") if weights_first else weights.insert(1, "a shorter window")
    return "; ".join([*weights, *rows][:3] if weights_first else [*rows, *weights, "a smaller model"][:3])
