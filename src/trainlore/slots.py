"""Where a part may act in the training loop, and the one law by which parts combine there."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from trainlore.errors import Bad

SLOTS: dict[str, str] = {
    "odds": "product",  #   () -> Tensor[N] | None  how likely each row is to be drawn; None: no opinion
    "draw": "wrap",  #      (n) -> batch            what comes next
    "batch": "chain",  #    (batch) -> batch        what the model sees of it
    "forward": "wrap",  #   (batch) -> out          how the model is run
    "loss": "wrap",  #      (batch, out) -> Tensor  one value a row (B,) or token (B,T), unreduced
    "penalty": "sum",  #    () -> Tensor[]          what no row owns
    "gradient": "wrap",  #  () -> None              fills p.grad
    "rate": "product",  #   () -> float             multiplies the learning rate
    "optimizer": "one",  #  (params) -> Optimizer
    "update": "wrap",  #    () -> None              one step of the weights
    "readout": "one",  #    () -> dict[str, Tensor] the weights to evaluate and to hand on
    "stop": "any",  #       () -> bool
    "watch": "all",  #      (record) -> None        sees, never touches
}
LIFE = ("attach", "start", "detach")  # change the model's structure; look and remember; change it back


class Clash(Bad):
    """Two parts that cannot both have their way, found before anything runs."""


def takes_inner(function: Any) -> bool:
    """Whether this slot function wraps what is inside it."""
    return "inner" in inspect.signature(function).parameters


def fills(part: Any, slot: str) -> bool:
    """Whether the part acts in the slot."""
    return hasattr(type(part), slot)


def check(parts: tuple[Any, ...], columns: dict[str, str]) -> None:
    """Raise Clash unless the parts can share one loop over data with these columns."""
    for slot, law in SLOTS.items():
        mine = [p for p in parts if fills(p, slot)]
        owners = [p for p in mine if law == "one" or (law == "wrap" and not takes_inner(getattr(p, slot)))]
        if len(owners) > 1:
            names = " and ".join(type(p).__name__ for p in owners)
            raise Clash(
                f"{names} both own `{slot}`: keep one" + (", or give it an `inner` to wrap" if law == "wrap" else "")
            )
        if slot == "loss" and owners and not owners[0].rowwise:
            for p in mine:
                if p is not owners[0] and p.rowwise:
                    raise Clash(
                        f"{type(p).__name__} weighs rows, but {type(owners[0]).__name__} has one loss for the batch"
                    )
    known = {name: (kind, "the data") for name, kind in columns.items()}
    in_time = sorted(parts, key=lambda p: next((i for i, slot in enumerate(SLOTS) if fills(p, slot)), len(SLOTS)))
    for p in in_time:
        for name, kind in p.needs.items():
            has, source = known.get(name, ("nothing", "the data"))
            if kind != has and not (kind == "any" and has != "nothing"):
                say = f"there are {', '.join(sorted(known))}" if has == "nothing" else f"{source} makes it {has}"
                raise Clash(f"{type(p).__name__} needs `{name}` to be {kind}; {say}")
        known |= {name: (kind, type(p).__name__) for name, kind in p.gives.items()}


def fold(slot: str, bound: list[tuple[Any, dict]], loop: Any, base: Any, effects: Any) -> Any:
    """All parts' share of one slot as a single function: inner first, in recipe order. `effects` watches each part act."""
    law = SLOTS[slot]
    mine = [(p, partial(getattr(p, slot), loop, s)) for p, s in bound if fills(p, slot)]
    if law in ("wrap", "one"):
        for part, call in sorted(mine, key=lambda pc: takes_inner(pc[1].func)):
            base = (
                effects.wrapping(slot, part, call, base)
                if takes_inner(call.func)
                else effects.owning(slot, part, call, base)
            )
        return base
    calls = [effects.watching(slot, part, call) for part, call in mine]
    if not calls:
        return base
    if law == "chain":

        def chain(value: Any) -> Any:
            for call in calls:
                value = call(value)
            return value

        return chain
    if law == "product":

        def product() -> Any:
            said = [v for v in (call() for call in calls) if v is not None]
            value = base() if not said else said[0]
            for more in said[1:]:
                value = value * more
            return value

        return product
    if law == "sum":
        return lambda: sum((call() for call in calls), base())
    if law == "any":
        return lambda: any([call() for call in calls])  # a list: every part is asked, whatever the others say
    return lambda value: [call(value) for call in calls]
