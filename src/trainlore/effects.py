"""Dead switches: what each part did to a few steps, measured from outside it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

EARLY = (0, 1, 2, 3, 5, 10, 20, 50)  # then every hundredth step and the last: where rare actions are usually scheduled
BLIND = ("watch", "stop")  # these only look, and so cannot be told from doing nothing


def fine(value: Tensor) -> Tensor:
    """In float64, or in float32 on Apple's devices, which know no other."""
    return value.float() if value.device.type == "mps" else value.double()


class Effects:
    """The largest change each part made in each slot over the steps looked at; 0 means it never did anything.

    The change is relative: of a loss, logits or weights the norm of the difference over the norm before; of rows
    the share of them that changed; of a learning rate |factor - 1|.
    """

    def __init__(self, weights: Callable[[], Iterable[Tensor]]) -> None:
        self.weights = weights
        self.on = False
        self.seen: dict[int, dict[str, float]] = {}
        self.names: dict[int, Any] = {}

    def look(self, t: int, last: bool) -> None:
        """Look at step t, or not."""
        self.on = t in EARLY or t % 100 == 0 or last

    def note(self, part: Any, slot: str, change: float) -> None:
        """The part changed something by this much here."""
        mine = self.seen.setdefault(id(part), {})
        self.names[id(part)] = part
        mine[slot] = max(mine.get(slot, 0.0), float(change))

    def table(self, parts: Iterable[Any]) -> list[dict[str, Any]]:
        """One object a part: name, what it did by slot, and whether it is dead (did nothing while not at its null)."""
        from trainlore.slots import SLOTS, fills

        rows = []
        for part in parts:
            did = self.seen.get(id(part), {})
            off = part.null is not None and all(getattr(part, k) == v for k, v in part.null.items())
            only_looks = all(s in BLIND for s in SLOTS if fills(part, s)) and not fills(part, "attach")
            private = type(part).__name__.startswith("_")  # a step's own instrument, not a switch of the user's
            dead = not (off or only_looks or private or any(did.values()))
            rows.append(
                {
                    "part": type(part).card["name"] if hasattr(type(part), "card") else type(part).__name__,
                    "did": did,
                    "null": off,
                    "dead": dead,
                }
            )
        return rows

    # ---- the three ways a slot's call is watched

    def wrapping(self, slot: str, part: Any, call: Any, inner: Any) -> Any:
        """A call around an inner one: what it made of the inner one's result."""

        def plain(*args: Any) -> Any:
            if not self.on:
                return call(*args, inner=inner)
            before: list[Any] = []

            def spy(*inner_args: Any) -> Any:
                value = inner(*inner_args)
                before.append(self._trace(slot, value))
                return value

            value = call(*args, inner=spy)
            self.note(part, slot, _change(before[0], self._trace(slot, value)) if before else 1.0)
            return value

        return plain

    def owning(self, slot: str, part: Any, call: Any, base: Any) -> Any:
        """A call in the place of the engine's own: it acted if it was called at all; a readout if it differs."""

        def plain(*args: Any) -> Any:
            value = call(*args)
            if slot == "readout":
                self.note(part, slot, 0.0 if value is None else _state_change(base(), value))
            elif self.on:
                self.note(part, slot, 1.0)
            return value

        return plain

    def watching(self, slot: str, part: Any, call: Any) -> Any:
        """A call that shares a slot: what its own value says."""

        def plain(*args: Any) -> Any:
            if not self.on or slot in BLIND:
                return call(*args)
            before = self._trace(slot, args[0]) if slot == "batch" else None
            value = call(*args)
            if slot == "batch":
                self.note(part, slot, _change(before, self._trace(slot, value)))
            elif slot == "rate":
                self.note(part, slot, abs(float(value) - 1))
            elif slot == "penalty":
                self.note(part, slot, abs(float(value.detach() if isinstance(value, Tensor) else value)))
            elif value is not None:  # odds
                mean = fine(value).mean()
                self.note(part, slot, float(fine((fine(value) / mean - 1).abs() > 1e-6).mean()))
            return value

        return plain

    @torch.no_grad()
    def _trace(self, slot: str, value: Any) -> Any:
        if slot == "gradient":
            return [p.grad.detach().clone() if p.grad is not None else None for p in self.weights()]
        if slot == "update":
            return [p.detach().clone() for p in self.weights()]
        if slot in ("batch", "draw"):
            return {k: v.clone() for k, v in value.items() if isinstance(v, Tensor)}
        return value.detach().clone() if isinstance(value, Tensor) else value


def _change(before: Any, after: Any) -> float:
    """Relative size of a change between tensors, lists of tensors or batches; 1 where the form itself changed."""
    if isinstance(before, dict):
        if before.keys() != after.keys():
            return 1.0
        return max((_change(before[k], after[k]) for k in before), default=0.0)
    if isinstance(before, list):
        if len(before) != len(after) or any((a is None) != (b is None) for a, b in zip(before, after, strict=True)):
            return 1.0
        pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None]
        if any(a.shape != b.shape for a, b in pairs):
            return 1.0
        moved = sum(float((fine(b) - fine(a)).square().sum()) for a, b in pairs)
        size = sum(float(fine(a).square().sum()) for a, b in pairs)
        return (moved / size) ** 0.5 if size else float(moved > 0)
    if not isinstance(before, Tensor):
        return float(before is not after)
    if before.shape != after.shape or before.dtype != after.dtype:
        return 1.0
    if not before.is_floating_point():
        return float(fine(before != after).mean())
    return _change([before], [after])


def _state_change(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    shared = [k for k in after if k in before and before[k].is_floating_point()]
    return _change([before[k] for k in shared], [after[k] for k in shared])
