"""Where and how a network runs: device, precision, compiling, and the pieces a batch is cut into."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
    if device.type == "mps":  # it knows no float64
        batch = {k: v.float() if isinstance(v, Tensor) and v.dtype == torch.float64 else v for k, v in batch.items()}
    return {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}


def choose_device(name: str, processes: int = 1) -> torch.device:
    """auto: CUDA, else Apple's where one process trains, else the CPU. Raises Bad on a device that is not there."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise Bad(f"device is auto, cpu, cuda or mps, not {name!r}")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    apple = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if there else "mps" if apple and processes == 1 else "cpu"
    kind, _, number = name.partition(":")
    if kind == "cuda" and not there:
        raise Bad("device: cuda is asked for, but there is none here: say auto or cpu")
    if kind == "mps" and not apple:
        raise Bad("device: mps is asked for, but there is none here: say auto or cpu")
    if number and int(number) >= there:
        raise Bad(f"device: {name} is asked for, but the last one here is cuda:{there - 1}")
    if processes > 1 and (number or kind == "mps"):
        raise Bad(
            f"device: {name} cannot be shared by {processes} processes: say cuda, which gives each its own, or cpu"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if processes > 1 and kind == "cuda" and here > there:
        raise Bad(
            f"{here} processes were started here, and there are {there} CUDA devices: start {there}, or say device: cpu"
        )
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
        if self.on and (grads := gradients(weights)):
            torch._foreach_mul_(grads, 1 / self.factor)

    @torch.no_grad()
    def sound(self, weights: Iterable[Tensor], team: Any = None) -> bool:
        """Whether all gradients are numbers, in all processes, so that the step can be made; moves the factor."""
        if not self.on:
            return True
        grads = gradients(weights)
        good = not grads or bool(torch.stack([n.float() for n in torch._foreach_norm(grads)]).isfinite().all())
        if team is not None and team.size > 1:
            good = team.sums(float(not good))[0] == 0
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


def gradients(weights: Iterable[Tensor]) -> list[Tensor]:
    """The gradients there are; of a weight that is shared out, this process's share."""
    return [getattr(p.grad, "_local_tensor", p.grad) for p in weights if p.grad is not None]


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
    broken = torch._dynamo.utils.graph_break_reasons
    try:
        pieces = list(model.blocks)
    except Bad:
        pieces = [child for child in model.net.children() if next(child.parameters(), None) is not None]
    before = len(broken)
    for piece in pieces:
        piece.compile(backend=backend)
    try:
        yield told
    finally:
        for piece in pieces:
            piece._compiled_call_impl = None
        told |= {"backend": backend, "pieces": len(pieces), "outside": sorted({_broken(r) for r in broken[before:]})}


def _broken(reason: Any) -> str:
    """Whose code fell out of a graph, and why: "block_movement (Unsupported Tensor.item() call)"."""
    why = reason.reason.strip().splitlines()[0]
    return f"{Path(reason.user_stack[-1].filename).stem} ({why})" if reason.user_stack else why


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
