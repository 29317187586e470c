"""Where and how a network runs: device, precision, compiling, and the pieces a batch is cut into."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model


def split(batch: Batch, size: int | None) -> list[Batch]:
    """The batch in pieces of `size` rows; what is not one entry a row goes with every piece."""
    n = len(batch["row"])
    if not size or size >= n:
        return [batch]
    return [
        {k: v[at : at + size] if isinstance(v, Tensor) and v.dim() and len(v) == n else v for k, v in batch.items()}
        for at in range(0, n, size)
    ]


def to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on the device."""
    if device.type == "cpu":
        return batch
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def choose_device(name: str) -> torch.device:
    """auto: CUDA, else Apple's, else the CPU."""
    if name not in ("auto", "cpu", "mps") and not name.startswith("cuda"):
        raise Bad(f"device is auto, cpu, cuda or mps, not {name!r}")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise Bad("device: cuda is asked for, but there is none here: say auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    return torch.device(name)


def use_bf16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16."""
    return chosen_precision(precision, device) is torch.bfloat16


def chosen_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that matrix products run in: bf16 by itself where the machine has it."""
    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if name in kinds:
        return kinds[name]
    if name != "auto":
        raise Bad(f"precision is fp32, bf16, fp16 or auto, not {name!r}")
    if device.type == "cuda":
        has = torch.cuda.is_bf16_supported()
    else:
        has = (
            device.type == "cpu"
            and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    return torch.bfloat16 if has else torch.float32


def autocast(kind: torch.dtype, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in this type, inside."""
    return nullcontext() if kind is torch.float32 else torch.autocast(device.type, kind)


class Scale:
    """Loss scaling, without which small gradients vanish in fp16: the factor falls where a gradient overflows (that step
    is passed over) and rises after 2,000 steps that did not. 1 and without effect in other types."""

    def __init__(self, kind: torch.dtype) -> None:
        self.on = kind is torch.float16
        self.factor, self.good = (2.0**14 if self.on else 1.0), 0

    @torch.no_grad()
    def undo(self, weights: Iterable[Tensor]) -> None:
        """Divide the gradients by the factor they were computed with."""
        if self.on and (grads := [p.grad for p in weights if p.grad is not None]):
            torch._foreach_mul_(grads, 1 / self.factor)

    @torch.no_grad()
    def sound(self, weights: Iterable[Tensor]) -> bool:
        """Whether all gradients are numbers, so that the step can be made; moves the factor."""
        if not self.on:
            return True
        norms = torch._foreach_norm([p.grad for p in weights if p.grad is not None])
        good = bool(torch.stack([n.float() for n in norms]).isfinite().all())
        self.good = self.good + 1 if good else 0
        if not good:
            self.factor = max(1.0, self.factor / 2)
        elif self.good % 2000 == 0:
            self.factor *= 2
        return good

    def state(self) -> dict[str, float]:
        """All of it, for a checkpoint."""
        return {"factor": self.factor, "good": self.good}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from there."""
        self.factor, self.good = state["factor"], int(state["good"])


@contextmanager
def compiled(model: Model, backend: str) -> Iterator[dict[str, Any]]:
    """The model's blocks (of a net without any, its children) compiled, each by itself; what fell out of the graphs.

    Blocks of one class share one graph. Parts, losses and the optimizer stay outside. "" compiles nothing.
    """
    told: dict[str, Any] = {}
    if not backend:
        yield told
        return
    if backend not in (known := torch.compiler.list_backends(exclude_tags=("debug",)) + ["aot_eager"]):
        raise Bad(f"compile={backend!r} is no backend: give one of {', '.join(sorted(known))}")
    counters = torch._dynamo.utils.counters
    try:
        pieces = list(model.blocks)
    except Bad:
        pieces = [child for child in model.net.children() if next(child.parameters(), None) is not None]
    before = dict(counters["graph_break"])
    for piece in pieces:
        piece.compile(backend=backend)
    try:
        yield told
    finally:
        for piece in pieces:
            piece._compiled_call_impl = None
        breaks = [
            text.strip().splitlines()[0] for text, n in counters["graph_break"].items() if n > before.get(text, 0)
        ]
        told |= {"backend": backend, "pieces": len(pieces), "outside": sorted(set(breaks))}


@contextmanager
def checkpointed(net: Any, on: bool) -> Iterator[None]:
    """Activations of blocks computed again in the backward pass instead of kept: less memory, a third more work."""
    if not on:
        yield
        return
    if not getattr(net, "supports_gradient_checkpointing", False):
        raise Bad(f"checkpoint_activations: {type(net).__name__} has no blocks that know how: leave it out")
    was = bool(getattr(net, "is_gradient_checkpointing", False))
    net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    try:
        yield
    finally:
        if not was:
            net.gradient_checkpointing_disable()


# ---- memory


def available(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device; None where it does not say."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            root = Path("/sys/fs/cgroup")
            free = min(free, int((root / limit).read_text()) - int((root / used).read_text()))
    return free


def needed(model: Model, rows: Batch, size: int, values: Callable[[Batch], Tensor], trained: Iterable[Tensor]) -> int:
    """Bytes that a step will take beyond the weights: gradients, two moments a weight, and what `size` rows keep.

    What rows keep is measured on a few of them (`rows`, the longest), by what their pass saves for the backward pass.
    """
    own = {p.untyped_storage().data_ptr() for p in model.net.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        store = tensor.untyped_storage()
        if store.data_ptr() not in own:
            kept[store.data_ptr()] = store.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        held = values(rows)
    state = sum(3 * p.numel() * p.element_size() for p in trained)
    return state + int(sum(kept.values()) / len(rows["row"]) * size) + 0 * held.numel()


def ways_out(size: int, micro: int | None, checkpoints: bool, precision: torch.dtype) -> str:
    """The three cheapest ways to need less memory, from these settings on."""
    now = micro or size
    ways = [f"micro_batch: {max(1, now // 4)} (the same gradient in smaller pieces)"] if now > 1 else []
    if not checkpoints:
        ways.append("checkpoint_activations: true (a third more work)")
    if precision is torch.float32:
        ways.append("precision: bf16")
    return "; ".join([*ways, "adapters (`lora`) instead of all weights", "a shorter window"][:3])
