"""The meter: every forward and backward of every network is paid for, whoever runs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

_RUNNING: list[Meter] = []  # from the outermost to the innermost: all are paid
_DEPTH = [0]  # a network inside another network is paid for by the outer one
_OPEN: list[Any] = []  # the counter of the pass that is being counted for the first time


@dataclass
class Meter:
    """Counted work. FLOPs are a forward's matrix products and attention by shape; a backward costs as much again for
    the activations and, for the trained share of the weights, once more."""

    forward: float = 0.0
    backward: float = 0.0
    tokens: int = 0  # through any network, forward
    rows: int = 0
    steps: int = 0  # updates of weights, by any training
    seconds: float = 0.0
    peak: int = 0  # bytes: resident memory of the process, or allocated on the accelerator

    @property
    def work(self) -> float:
        """FLOPs in all."""
        return self.forward + self.backward

    @contextmanager
    def running(self) -> Iterator[Meter]:
        """Whatever network runs inside pays here, and to every meter that runs around this one, to each once."""
        outermost = not any(m is self for m in _RUNNING)
        _RUNNING.append(self)
        start, depth, open_ = time.perf_counter(), _DEPTH[0], len(_OPEN)
        try:
            yield self
        finally:
            _DEPTH[0] = depth  # a pass that Ctrl-C broke off never came back to say so
            while len(_OPEN) > open_:
                _OPEN.pop().__exit__(None, None, None)
            self.seconds += (time.perf_counter() - start) * outermost
            self.peak = max(self.peak, peak_memory())
            _RUNNING.pop()

    def add(self, other: Meter) -> None:
        """Pay another meter's bill here too."""
        self.forward += other.forward
        self.backward += other.backward
        self.tokens += other.tokens
        self.rows += other.rows
        self.steps += other.steps
        self.peak = max(self.peak, other.peak)

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {**asdict(self), "work": self.work}

    @staticmethod
    def of(state: dict[str, Any]) -> Meter:
        """The meter that gave this state."""
        return Meter(**{k: v for k, v in state.items() if k != "work"})


def stepped() -> None:
    """Count one update of the weights on every meter that runs."""
    for bill in {id(m): m for m in _RUNNING}.values():
        bill.steps += 1


def elsewhere(work: float) -> None:
    """Pay for what other processes did for this training: a third of it forward, as in a plain step."""
    for bill in {id(m): m for m in _RUNNING}.values():
        bill.forward += work / 3
        bill.backward += 2 * work / 3


def pay(bill: Meter) -> None:
    """Put a bill, of another process or of an earlier one, on every meter that runs."""
    for mine in {id(m): m for m in _RUNNING}.values():
        mine.add(bill)


@contextmanager
def unpaid() -> Iterator[None]:
    """What runs inside is on nobody's bill: looking at a training from outside, which the training does not need."""
    paying = _RUNNING[:]
    _RUNNING.clear()
    try:
        yield
    finally:
        _RUNNING[:] = paying


def peak_memory() -> int:
    """Largest memory so far in bytes: of the accelerator where there is one, else of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def watch(net: nn.Module) -> None:
    """Count this network's passes from now on; called again after its structure changed."""
    if not hasattr(net, "_flops"):
        net.register_forward_pre_hook(_before, with_kwargs=True)
        net.register_forward_hook(_after, with_kwargs=True, always_call=True)
    object.__setattr__(net, "_flops", {})
    weights = list(net.parameters())
    total = sum(p.numel() for p in weights)
    object.__setattr__(net, "_trained", sum(p.numel() for p in weights if p.requires_grad) / total if total else 0.0)


READ = ("input_ids", "pixel_values", "inputs_embeds", "features", "decoder_input_ids")
HIDDEN = (("hidden_states", 0.0, 1.0), ("encoder_hidden_states", 0.0, 0.5), ("decoder_hidden_states", 0.5, 1.0))


def _shape(x: Tensor, kwargs: dict) -> tuple[Any, ...]:
    """What a row costs depends on this: the shape of what is read and of what is written beside it, and how many logits."""
    written, few = kwargs.get("decoder_input_ids"), kwargs.get("logits_to_keep")
    said = ("to", *written.shape[1:]) if isinstance(written, Tensor) else ()
    return (*x.shape[1:], *said, *(("of", few) if few and isinstance(few, int) else ()))


def _main_input(args: tuple, kwargs: dict) -> Tensor | None:
    for value in (*args, *(kwargs.get(k) for k in READ)):
        if isinstance(value, Tensor):
            return value
    return None


def _before(net: Any, args: tuple, kwargs: dict) -> None:
    _DEPTH[0] += 1
    if _DEPTH[0] > 1 or not _RUNNING or torch.compiler.is_compiling():
        return
    x = _main_input(args, kwargs)
    if x is not None and _shape(x, kwargs) not in net._flops:
        _OPEN.append(_counter())
        _OPEN[-1].__enter__()


def _after(net: Any, args: tuple, kwargs: dict, out: Any) -> None:
    _DEPTH[0] -= 1
    counting = None if _DEPTH[0] or not _OPEN else _OPEN.pop()
    if counting is not None:
        counting.__exit__(None, None, None)
    if out is None:  # the pass failed: what was counted of it is no count of the next
        return
    if _DEPTH[0] or not _RUNNING or (x := _main_input(args, kwargs)) is None:
        return
    if counting is not None:
        net._flops[_shape(x, kwargs)] = counting.get_total_flops() / max(1, len(x))  # cost is linear in the rows
    work = net._flops.get(_shape(x, kwargs), 0.0) * len(x)
    meters = list({id(m): m for m in _RUNNING}.values())
    for meter in meters:
        meter.forward += work
        meter.rows += len(x)
        meter.tokens += x.numel() if not x.is_floating_point() else len(x)
    if not torch.is_grad_enabled():
        return
    weights = 1 + net._trained
    spent: dict[int, float] = {}  # by backward pass: how much of this forward pass it has paid for

    def bill(share: float) -> Any:
        def paid(grad: Tensor) -> None:
            task = torch._C._current_graph_task_id()
            more = share - spent.get(task, 0.0)
            if more > 0:
                spent[task] = share
                for meter in meters:
                    meter.backward += work * weights * more

        return paid

    for place, share in _entries(out):
        if place.requires_grad:
            place.register_hook(bill(share))


def _entries(out: Any) -> list[tuple[Tensor, float]]:
    """Where a loss may enter what a pass gave, and the share of the pass that lies below: its answer, and hidden states.

    A gradient that enters at hidden layer i of n is paid for as i / n of the pass; of several that enter, the highest.
    Encoder and decoder count as a half each.
    """
    answers = (out, getattr(out, "logits", None), getattr(out, "last_hidden_state", None))
    found = [(v, 1.0) for v in answers if isinstance(v, Tensor)][:1]
    for name, low, high in HIDDEN:
        states = getattr(out, name, None)
        if isinstance(states, tuple | list) and len(states) > 1:
            rise = (high - low) / (len(states) - 1)
            found += [(v, low + at * rise) for at, v in enumerate(states) if isinstance(v, Tensor)]
    return found


def _counter() -> Any:
    from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

    def attention(q: Any, k: Any, v: Any, *rest: Any, out_shape: Any = None, **more: Any) -> int:
        return sdpa_flop_count(q, k, v)

    aten = torch.ops.aten
    mapping = {aten._scaled_dot_product_flash_attention_for_cpu: attention}
    return _Counting(FlopCounterMode(display=False, custom_mapping=mapping))


class _Counting:
    """A counter of FLOPs that keeps compiled pieces from running compiled while it counts."""

    def __init__(self, mode: Any) -> None:
        self.mode = mode
        self.get_total_flops = mode.get_total_flops

    def __enter__(self) -> None:
        self.plainly = None
        if "torch._dynamo" in sys.modules:
            self.plainly = torch.compiler.set_stance("force_eager")
            self.plainly.__enter__()
        self.mode.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.mode.__exit__(*error)
        if self.plainly is not None:
            self.plainly.__exit__(*error)
