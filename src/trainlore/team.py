"""The processes that train one model together: who they are, their share of a batch, and what they add up.

Every process draws and prepares the whole batch, by name, so that parts see the same rows whatever the number of
processes; each then runs its share of the rows through the network, and gradients are summed.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch
from trainlore.slots import fills, takes_inner

BUCKET = 25 << 20  # bytes of gradients that travel at once
PATIENCE = timedelta(hours=2)  # the first process may write a large model for long while the others wait


class Team:
    """One of `size` processes; a team of one does nothing."""

    def __init__(self, device: torch.device | None = None) -> None:
        on = dist.is_available() and dist.is_initialized()
        self.rank, self.size = (dist.get_rank(), dist.get_world_size()) if on else (0, 1)
        self.device = device or torch.device("cpu")
        self._beside: Any = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This process's rows of the batch; what is not one entry a row is everybody's."""
        n = len(batch["row"])
        if self.size == 1:
            return batch
        if n < self.size:
            raise Bad(f"a batch of {n} rows cannot be shared by {self.size} processes: raise batch_size")
        low, high = n * self.rank // self.size, n * (self.rank + 1) // self.size
        return {k: v[low:high] if isinstance(v, Tensor) and v.dim() and len(v) == n else v for k, v in batch.items()}

    @torch.no_grad()
    def sum_gradients(self, weights: Sequence[nn.Parameter]) -> None:
        """Every plain weight's gradient summed over the processes; one that no process has stays absent."""
        if self.size == 1:
            return
        plain = [p for p in weights if type(p.data) is Tensor]  # sharded ones were summed in their backward pass
        has = torch.tensor([float(p.grad is not None) for p in plain], device=self.device)
        dist.all_reduce(has, dist.ReduceOp.MAX)
        wanted = [p for p, any_ in zip(plain, has.tolist(), strict=True) if any_]
        for p in wanted:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        bucket: list[Tensor] = []
        for p in wanted:
            bucket.append(p.grad)  # type: ignore[arg-type]
            if sum(g.numel() * g.element_size() for g in bucket) >= BUCKET:
                self._summed(bucket)
                bucket = []
        if bucket:
            self._summed(bucket)

    def _summed(self, tensors: list[Tensor]) -> None:
        flat = torch.cat([t.flatten().float() for t in tensors])
        dist.all_reduce(flat)
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view_as(t))

    def sums(self, *numbers: float) -> list[float]:
        """Each number summed over the processes."""
        if self.size == 1:
            return list(numbers)
        held = torch.tensor(
            numbers, dtype=torch.float32 if self.device.type == "mps" else torch.float64, device=self.device
        )
        dist.all_reduce(held)
        return held.tolist()

    def told(self, value: Any) -> Any:
        """What the leading process says."""
        if self.size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, 0, device=self.device)
        return held[0]

    def agrees(self, content: bytes) -> bool:
        """Whether all processes hold what the first one does."""
        if self.size == 1:
            return True
        mine = hashlib.blake2b(content).digest()
        return self.sums(float(mine != self.told(mine)))[0] == 0

    def wait(self, group: Any = None) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier(group)

    def beside(self) -> Any:
        """A group for what threads of all processes say to each other while the training's own words go on."""
        if self._beside is None:
            self._beside = dist.new_group(backend="gloo")
        return self._beside

    @torch.no_grad()
    def alike(self, tensors: Iterable[Tensor], what: str) -> None:
        """Raise Bad unless every process holds the same values."""
        if self.size == 1:
            return
        sums = [
            t.double().sum() for t in tensors if type(t) is Tensor and (t.is_floating_point() or t.dtype == torch.long)
        ]
        mine = torch.stack([s.to(self.device) for s in sums]) if sums else torch.zeros(1, device=self.device)
        low, high = mine.clone(), mine.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if not torch.equal(low, high) and not (low.isnan() | high.isnan()).any():
            raise Bad(f"{what} came out different on {self.size} processes: run it on one, and tell us")


def started() -> Team:
    """Join the processes that `torchrun` started, if it did; one process otherwise."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        mine, here = (int(os.environ.get(k, "1")) for k in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        each = torch.cuda.is_available() and here <= torch.cuda.device_count()  # a device of its own
        if each:
            torch.cuda.set_device(mine)
        dist.init_process_group("cpu:gloo,cuda:nccl" if each else "gloo", timeout=PATIENCE)
        if (
            not each
        ):  # gloo's threads end before the interpreter does; NCCL would wait here for a process that has failed
            atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
        _end_with(os.getppid())
    return Team()


def _end_with(parent: int) -> None:
    """Leave when torchrun is killed: processes that went on alone would write beside those of the resumed run."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def together(parts: Sequence[Any], team: Team) -> None:
    """Raise Bad on a part that needs to be alone, before anything runs."""
    if team.size == 1:
        return
    for part in parts:
        name = _name(part)
        known = getattr(type(part), "known", {})
        if reason := getattr(type(part), "alone", "") or known.get("micro_batches_agree", ""):
            raise Bad(f"{name} runs on one process only: {reason}")
        if not part.rowwise:
            raise Bad(f"{name} runs on one process only: it has one loss for the whole batch, which is shared out")
        if fills(part, "gradient") and not takes_inner(part.gradient):
            raise Bad(f"{name} runs on one process only: it computes the gradient of the whole batch by itself")


def _name(part: Any) -> str:
    """What people know a part by; of a step's own instrument, the step."""
    kind = type(part)
    if hasattr(kind, "card"):
        return str(kind.card["name"])
    return kind.__module__.rpartition(".")[2] if kind.__name__.startswith("_") else kind.__name__
