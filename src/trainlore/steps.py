"""Running one step: types in and out, the trail, the bill, the null, and the parity gate on every change of form."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainlore import meter, needs
from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives import losses as L
from trainlore.verbs import Curate, Fit, Measure, Shape

if TYPE_CHECKING:
    from trainlore.runs import Run

SIGNATURE: dict[type, tuple[tuple[type, ...], type]] = {
    Curate: ((Data,), Data),
    Shape: ((Model,), Model),
    Fit: ((Model, Data), Model),
    Measure: ((Model, Data), Report),
}
SAME = 1e-3  # relative distance of the logits below which a change of form counts as none


class Parity(Bad):
    """A change of form that changed the outputs beyond the stated tolerance."""


def kind_of(method: Any) -> type:
    """The verb a step is."""
    for verb in SIGNATURE:
        if isinstance(method, verb):
            return verb
    raise Bad(f"{type(method).__name__} is not a step: a part goes under `with` of a training step")


def run_step(run: Run, method: Any, *nouns: Any) -> Any:
    """See `Run.step`."""
    takes, gives = SIGNATURE[kind_of(method)]
    if len(nouns) != len(takes) or not all(isinstance(n, t) for n, t in zip(nouns, takes, strict=False)):
        said = ", ".join(type(n).__name__ for n in nouns) or "nothing"
        raise Bad(f"{_name(method)} takes {' and '.join(t.__name__ for t in takes)}, not {said}")
    for noun in nouns:
        if isinstance(noun, Data) and (need := needs.of_method(method, noun)):
            needs.held_against([need])
    before = logits_of(run, nouns[0]) if gives is Model and isinstance(method, Shape | Fit) else None
    paid, start = run.meter.work, time.perf_counter()
    with run.meter.running():
        result = method(run, *nouns)
    if not isinstance(result, gives):
        raise TypeError(f"{_name(method)} must give {gives.__name__}, not {type(result).__name__}")
    entry = {
        "method": _name(method),
        "step": run.label,
        "seconds": time.perf_counter() - start,
        "work": run.meter.work - paid,
    }
    if isinstance(result, Data):
        result = _trailed(result, nouns[0], entry)
    elif isinstance(result, Model):
        meter.watch(result.net)
        result.trail = (*result.trail, entry)
        if before is not None and (isinstance(method, Shape) or hasattr(method, "tolerance")):
            gate(run, method, result, before)
    return result


def _name(method: Any) -> str:
    return type(method).card["name"] if hasattr(type(method), "card") else type(method).__name__


def _trailed(result: Data, given: Data, entry: dict[str, Any]) -> Data:
    """The data with one more line on its trail: rows in and out, and the columns that are new."""
    import dataclasses

    new = [c for c in result.columns if c not in given.columns]
    made = "parents" in new
    if "parents" in given.columns and "parents" in result.columns:  # new rows out of rows that were new once themselves
        same = result.table.num_rows == given.table.num_rows and result.table["parents"].equals(given.table["parents"])
        made = not same
    entry |= {"rows_in": len(given), "rows_out": len(result), "columns": new, "made": made}
    return dataclasses.replace(result, trail=(*given.trail, entry))


# ---- the parity gate


@torch.no_grad()
def logits_of(run: Run, model: Model) -> dict[str, Any] | None:
    """Logits and row losses on the model's probe rows; None for a model that was never trained or measured."""
    if model.probe is None:
        return None
    from trainlore.placement import to

    batch, was = to(model.probe, model.device), model.net.training
    if model.input not in batch:
        return None
    model.net.eval()
    with run.meter.running():
        out = model(batch).float()
    model.net.train(was)
    found: dict[str, Any] = {"logits": out}
    if "labels" in batch and model.kind not in ("encoder", "denoiser"):
        found["loss"] = L.per_row(L.rowwise(model.kind, batch, out), batch, model.kind)
    return found


def distance(before: torch.Tensor, after: torch.Tensor) -> float:
    """Relative distance of logits after centring each place (a shift common to all classes changes no probability)."""
    a, b = (x.double() - x.double().mean(-1, keepdim=True) for x in (before, after))
    return float((b - a).norm() / a.norm().clamp(min=1e-12))


def gate(run: Run, method: Any, model: Model, before: dict[str, Any]) -> None:
    """Compare outputs on the same rows before and after, write the row of the parity table, and stop beyond tolerance."""
    tolerance = getattr(method, "tolerance", SAME if getattr(method, "keeps", False) else None)
    after = logits_of(run, model)
    if after is None:
        return
    row: dict[str, Any] = {
        "step": run.label,
        "method": _name(method),
        "tolerance": tolerance,
        "rows": len(after["logits"]),
    }
    if after["logits"].shape != before["logits"].shape:
        if tolerance is not None:
            raise Parity(
                f"{_name(method)} changed the form of the outputs: {tuple(before['logits'].shape)} to {tuple(after['logits'].shape)}"
            )
        return
    row["distance"] = distance(before["logits"], after["logits"])
    if "loss" in before:
        change = (after["loss"] - before["loss"]).double().cpu().numpy()
        row |= {"loss_before": float(before["loss"].mean()), "loss_change": float(change.mean())}
        row["loss_stderr"] = float(np.std(change, ddof=1) / len(change) ** 0.5) if len(change) > 1 else None
    row["passed"] = tolerance is None or row["distance"] <= tolerance
    run.parity.append(row)
    if not row["passed"]:
        raise Parity(
            f"{_name(method)} moved the logits by {row['distance']:.3g} (relative), more than its tolerance {tolerance:.3g}: "
            "raise `tolerance` if that is meant, or change its fields"
        )
