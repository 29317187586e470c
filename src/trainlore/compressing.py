"""The smallest form of a model that is still good enough: methods and bits a layer, searched, judged on rows set apart."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives import losses as L
from trainlore.primitives.allocation import allocate, alone
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.grids import Grid, free, stored_bits
from trainlore.primitives.masks import matrices, plain, weight_of
from trainlore.registry import load
from trainlore.runs import Run

METHODS = ("nearest", "gptq", "awq")
BITS = (2, 3, 4, 5, 6, 8)
GROUP = 32  # inputs that share a scale: what GGUF holds as it is, and 3 bits can live with
SAFE = 1.645  # standard errors above the mean that still have to lie within the goal: one side of 5 %


@dataclass(frozen=True)
class Point:
    """One form of the model: what it is, how large, and what it costs in loss on rows set apart."""

    name: str
    method: str
    bits: dict[str, int]  # by layer
    bytes: int
    loss: float
    change: float  # mean paired change of the rows' loss
    stderr: float
    within: bool
    seconds: float


def goal_of(text: str, loss: float) -> float:
    """The largest change of loss that a goal allows: "loss +1 %" of what it is now, "loss +0.02" in its own unit."""
    found = re.fullmatch(r"\s*loss\s*\+\s*([0-9.]+)\s*(%?)\s*", text)
    if not found:
        raise Bad(f'goal {text!r} is not understood: write "loss +1 %" or "loss +0.02"')
    value = float(found[1])
    return value / 100 * loss if found[2] else value


def bits_of(text: str) -> float:
    """Bits a weight on average, at most: "4bit", "3.5bit"."""
    found = re.fullmatch(r"\s*([0-9.]+)\s*-?\s*bits?\s*", text)
    if not found or not 2 <= float(found[1]) <= 8:
        raise Bad(f"--to {text!r} is not understood: write 4bit, from 2bit to 8bit")
    return float(found[1])


def compress(
    model: Model,
    data: Data,
    to: str,
    goal: str,
    out: Path,
    rows: int = 64,
    force: bool = False,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Write the smallest form found that keeps the goal to `out`, with its front; give the record of the search.

    A quarter of the rows (at most 256) is set apart and judges; `rows` of the rest calibrate. A form keeps the goal if the
    mean paired change of loss, and 1.6 standard errors more, lie within it. Nothing is written where none does.
    """
    if out.exists() and (not force or not (out / "compress.json").exists()):
        raise Bad(f"{out} exists: choose another folder, or --force where an earlier search wrote it")
    most = bits_of(to)
    layers = plain(matrices(model.net))
    free(model, layers)
    if wrong := [p for p, m in layers.items() if weight_of(m).shape[1] % GROUP]:
        raise Bad(
            f"{wrong[0]} has inputs that groups of {GROUP} do not divide: quantize by hand, with `gptq` per: channel"
        )
    judge, rest = apart(data, seed)
    run = Run(seed)
    before = _losses(run, model, judge)
    allowed = goal_of(goal, float(before.mean()))
    size = whole_bytes(model)
    tell(
        f"loss {before.mean():.4f} on {len(before)} rows set apart; the goal allows +{allowed:.4f}; {size / 1e6:.1f} MB now"
    )
    points: list[Point] = []
    kept: tuple[Point, Model] | None = None

    def tried(name: str, method: str, bits: dict[str, int]) -> Point:
        nonlocal kept
        start = time.perf_counter()
        smaller = _applied(run, model, rest, method, bits, rows)
        change = _losses(run, smaller, judge) - before
        mean, error = float(change.mean()), float(change.std(ddof=1) / len(change) ** 0.5)
        took = time.perf_counter() - start
        ok = mean + SAFE * error <= allowed
        point = Point(name, method, bits, bytes_of(smaller), float(before.mean()) + mean, mean, error, ok, took)
        points.append(point)
        tell(f"  {name:24s} {point.bytes / 1e6:7.2f} MB   loss {mean:+.4f} +- {error:.4f}   {'kept' if ok else ''}")
        if ok and (kept is None or point.bytes < kept[0].bytes):
            kept = point, smaller
        return point

    uniform = [b for b in BITS if b <= most]
    best: dict[int, str] = {}
    for b in sorted(uniform, reverse=True):
        some = {m: tried(f"{m} {b} bits", m, dict.fromkeys(layers, b)) for m in METHODS if _can(m, model)}
        best[b] = min((m for m in some if m != "awq"), key=lambda m: some[m].change)  # awq moves scales between layers
    if len(uniform) > 1:
        costs = {p: {b: _bits(weight_of(m), b) for b in uniform} for p, m in layers.items()}
        lost = alone(model, layers, batches_of(run, model, rest, min(16, rows), 8, "sensitivity"), uniform, _rounded)
        total = sum(weight_of(m).numel() for m in layers.values())
        low, high = min(uniform), max(uniform)
        for mean in np.arange(low + 0.5, high, 0.5):
            chosen = allocate(lost, costs, float(total * (mean + 16 / GROUP)))
            method = best[uniform[int(np.abs(np.array(uniform) - mean).argmin())]]
            if not any(p.bits == chosen and p.method == method for p in points):
                tried(f"{method} {mean:g} bits, mixed", method, chosen)
    front = _front(points)
    record = {
        "to": to,
        "goal": goal,
        "allowed": allowed,
        "loss": float(before.mean()),
        "rows": {"calibration": min(rows, len(rest)), "judge": len(judge)},
        "bytes_before": size,
        "points": [asdict(p) for p in points],
        "front": [p.name for p in front],
        "chosen": kept[0].name if kept else None,
    }
    if kept is None:
        near = min(points, key=lambda p: p.change + SAFE * p.stderr)
        raise Bad(
            f"no form of at most {most:g} bits keeps {goal!r} (+{allowed:.4f}): the nearest, {near.name}, costs "
            f"{near.change:+.4f} +- {near.stderr:.4f}; allow more, more bits, or more calibration rows"
        )
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        kept[1].save(part / "model")
        (part / "compress.json").write_text(json.dumps(record, indent=1))
        (part / "report.html").write_text(page(record))
        shutil.rmtree(out, ignore_errors=True)
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return record


def apart(data: Data, seed: int) -> tuple[Data, Data]:
    """A quarter of the rows, at most 256, to judge by; the others to calibrate with."""
    if len(data) < 16:
        raise Bad(f"{len(data)} rows are too few: some calibrate and others judge; give at least 16")
    order = Run(seed).numpy("judge").permutation(len(data))
    many = min(256, len(data) // 4)
    return data.take(np.sort(order[:many])), data.take(np.sort(order[many:]))


def whole_bytes(model: Model) -> int:
    """Bytes of all weights as they are, shared ones once."""
    seen = {p.data_ptr(): p.numel() * p.element_size() for p in model.net.parameters()}
    return sum(seen.values())


def bytes_of(model: Model) -> int:
    """Bytes of all weights with those on a grid packed."""
    saved = 0.0
    for path, grid in model.grids.items():
        weight: Any = model.net.get_submodule(path).weight
        saved += weight.numel() * weight.element_size() - stored_bits(weight, grid) / 8
    return int(whole_bytes(model) - saved)


def _bits(weight: torch.Tensor, bits: int) -> float:
    return weight.numel() * bits + weight.numel() / GROUP * 16


def _rounded(weight: torch.Tensor, bits: int) -> torch.Tensor:
    return Grid.of(weight, f"int{bits}", GROUP).round(weight)


def _losses(run: Run, model: Model, data: Data) -> np.ndarray:
    values = run.infer(model, data, lambda b, out: L.per_row(L.rowwise(model.kind, b, out), b, model.kind))
    return values.double().numpy()


def _can(method: str, model: Model) -> bool:
    """Whether the method knows this family of networks."""
    if method != "awq":
        return True
    from trainlore.primitives.anatomy import feeds

    try:
        return bool(feeds(model))
    except Bad:
        return False


def _applied(run: Run, model: Model, data: Data, method: str, bits: dict[str, int], rows: int) -> Model:
    """A copy of the model, each layer at its bits, the widths one after the other from wide to narrow."""
    made = model.copy()
    cls = load(method)
    for width in sorted(set(bits.values()), reverse=True):
        targets = tuple(path for path, b in bits.items() if b == width)
        fields = {"bits": width, "per": GROUP, "symmetric": True, "targets": targets, "tolerance": float("inf")}
        if method == "nearest":
            made = run.step(cls(**fields), made)
        else:
            many = min(rows, len(data))
            made = run.step(cls(**fields, rows=many, size=min(8, many)), made, data)
    return made


def _front(points: list[Point]) -> list[Point]:
    """Those that no other beats in both size and loss."""

    def beats(one: Point, other: Point) -> bool:
        no_worse = one.bytes <= other.bytes and one.change <= other.change
        return no_worse and (one.bytes, one.change) != (other.bytes, other.change)

    return [p for p in points if not any(beats(o, p) for o in points)]


def page(record: dict[str, Any]) -> str:
    """The report of a search: the front as a picture, and every form that was tried."""
    from trainlore.figures import sizes
    from trainlore.page.pieces import CSS, esc, table

    rows = [
        [
            esc(p["name"]) + (" <b>chosen</b>" if p["name"] == record["chosen"] else ""),
            f"{p['bytes'] / 1e6:,.2f}",
            f"{p['change']:+.4f}",
            f"{p['stderr']:.4f}",
            "yes" if p["within"] else "no",
            f"{p['seconds']:.1f}",
        ]
        for p in sorted(record["points"], key=lambda p: p["bytes"])
    ]
    chosen = next(p for p in record["points"] if p["name"] == record["chosen"])
    line = (
        f"{chosen['name']}: {chosen['bytes'] / 1e6:,.2f} MB instead of {record['bytes_before'] / 1e6:,.2f}, "
        f"loss {chosen['change']:+.4f} ± {chosen['stderr']:.4f} on {record['rows']['judge']} rows set apart "
        f"({record['goal']} allows +{record['allowed']:.4f})"
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>compressed</title><style>{CSS}</style></head><body><main>'
        f"<h1>The smallest form within the goal</h1><p style='font-size:1.2rem'><b>{esc(line)}</b></p>"
        f"{sizes(record)}{table(['form', 'MB', 'loss', '± s.e.', 'within', 'seconds'], rows, (1, 2, 3, 5))}"
        "</main></body></html>"
    )
