"""The training loop. It owns time, devices, precision, accumulation, saving; parts own ideas."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainlore import meter
from trainlore.effects import Effects
from trainlore.errors import Bad
from trainlore.nouns import Batch, Data, Model
from trainlore.primitives import losses as L
from trainlore.primitives.sampling import Sampler
from trainlore.runs import Interrupted, Run
from trainlore.slots import check, fills, fold
from trainlore.units import amount
from trainlore.verbs import Part

CURVE = 2000  # points of the curve kept with the model


class Diverged(Bad):
    """The loss is no longer a number; the message names the step and the rows."""


class Loop:
    """What a part can see of the training it is in."""

    def __init__(self, run: Run, model: Model, data: Data, steps: int, size: int, device: torch.device) -> None:
        self.run, self.model, self.data, self.steps, self.size, self.device = run, model, data, steps, size, device
        self.t = 0
        self.spent = 0.0  # share of the budget, where it is not counted in steps
        self.batch: Batch = {}
        self.readout: Callable[[], dict[str, Tensor]] | None = None  # the weights to judge, where not those in training

    @property
    def done(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return max(self.t / max(1, self.steps), min(1.0, self.spent))

    def rng(self, *key: Any) -> torch.Generator:
        """A stream of random numbers named by the key: nobody else's draws move it."""
        return self.run.rng("loop", *key)

    @torch.no_grad()
    def losses(self, batch: Batch, model: Model | None = None) -> Tensor:
        """Row losses (B,) of this or another model, without a gradient; paid for on the meter."""
        model = model or self.model
        batch = to(batch, self.device)
        return L.per_row(L.rowwise(model.kind, batch, model(batch)), batch, model.kind)


def fit(
    run: Run,
    model: Model,
    data: Data,
    *parts: Any,
    steps: int | None = None,
    epochs: float | None = None,
    tokens: int | str | None = None,
    rows: int | str | None = None,
    seconds: float | None = None,
    work: float | str | None = None,
    batch_size: int = 32,
    micro_batch: int | None = None,
    lr: float = 1e-3,
    weight_decay: float = 0.0,
    precision: str = "auto",
    device: str = "auto",
    truncate: bool = False,
    until: int | None = None,
    folder: Path | None = None,
) -> Model:
    """Train the model (in place) until one budget is spent and hand it back.

    Budgets: `steps`, `epochs`, `tokens` ("2M"), `rows`, `seconds` or `work` (FLOPs), exactly one. `batch_size` rows make a step,
    in pieces of `micro_batch` that give the same gradient. `precision`: fp32, bf16, or auto (bf16 where the machine has
    it). A checkpoint goes to `folder` now and then and whatever is there is gone on from. `until` stops early at a step.
    """
    sensible(parts, micro_batch, lr, weight_decay)
    data = prepared(model, data, truncate)
    check(parts, with_made(data.kinds))
    trainable(model, data, parts)
    place = choose_device(device)
    model.net.to(place)
    total, limit = planned(
        data, batch_size, steps=steps, epochs=epochs, tokens=tokens, rows=rows, seconds=seconds, work=work
    )
    loop = Loop(run, model, data, total, batch_size, place)
    weights_before = {n: p.requires_grad for n, p in model.net.named_parameters()}
    with run.global_rng("start"):
        for part in parts:  # all structure first, so that whatever is remembered next is of the final shape
            if fills(part, "attach"):
                part.attach(loop)
        model.net.to(place)
        meter.watch(model.net)
        bound = [(part, part.start(loop)) for part in parts]
    for _, s in bound:
        for module in s.values():
            if isinstance(module, nn.Module):
                module.to(place)
    net, trained = model.net, [p for p in model.net.parameters() if p.requires_grad]
    effects = Effects(lambda: trained)
    for part in parts:
        if fills(part, "attach"):
            effects.note(
                part, "attach", float({n: p.requires_grad for n, p in net.named_parameters()} != weights_before)
            )
    autocast = torch.autocast(place.type, torch.bfloat16) if use_bf16(precision, place) else nullcontext()
    sampler = Sampler(len(data), lambda *key: loop.rng(*key))

    def base_draw(n: int) -> Batch:
        return data.batch(sampler.draw(loop.t, n, odds()), model)

    def base_gradient() -> None:
        """Token- or row-weighted mean over the whole step, however small the pieces it is computed in."""
        optimizer.zero_grad(set_to_none=True)
        batch, loss = loop.batch, 0.0
        pieces = split(batch, micro_batch)
        if len(pieces) > 1 and not all(p.rowwise for p in parts):
            raise Bad("a part has one loss for the whole batch, which cannot be split: leave micro_batch out")
        for piece in pieces:
            with autocast:
                values = row_loss(piece, forward(piece))
            share = mean_of(values, model.kind, piece, batch)
            share.backward()
            loss += share.detach()
        extra = penalty()
        if isinstance(extra, Tensor):
            extra.backward()
            loss += extra.detach()
        loop.loss = loss  # type: ignore[attr-defined]

    odds = fold("odds", bound, loop, lambda: None, effects)
    draw = fold("draw", bound, loop, base_draw, effects)
    prepare = fold("batch", bound, loop, lambda batch: batch, effects)
    forward = fold("forward", bound, loop, model, effects)
    row_loss = fold("loss", bound, loop, lambda batch, out: L.rowwise(model.kind, batch, out), effects)
    penalty = fold("penalty", bound, loop, lambda: 0.0, effects)
    gradient = fold("gradient", bound, loop, base_gradient, effects)
    rate = fold("rate", bound, loop, lambda: 1.0, effects)
    known = {id(p) for p in trained}
    extra = [p for _, s in bound for m in s.values() if isinstance(m, nn.Module) for p in m.parameters()]
    trained += [p for p in extra if p.requires_grad and id(p) not in known]
    if not trained:
        raise Bad(f"{model!r} has no weight to train: all are frozen")
    optimizer = fold("optimizer", bound, loop, lambda ps: adamw(ps, lr, weight_decay), effects)(trained)
    update = fold("update", bound, loop, optimizer.step, effects)
    stop = fold("stop", bound, loop, lambda: False, effects)
    watch = fold("watch", bound, loop, lambda record: None, effects)
    readout = fold("readout", bound, loop, net.state_dict, effects)
    loop.readout = readout if any(fills(p, "readout") for p in parts) else None
    base_lr = [g["lr"] for g in optimizer.param_groups]
    curve: dict[str, list[float]] = {"t": [], "loss": [], "rate": []}

    def state() -> dict[str, Any]:
        return {
            "t": loop.t,
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "parts": [{k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in s.items()} for _, s in bound],
            "curve": curve,
            "meter": here.state(),
        }

    def restore(saved: dict[str, Any]) -> None:
        loop.t = saved["t"]
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        for (_, s), old in zip(bound, saved["parts"], strict=True):
            for k, v in old.items():
                s[k].load_state_dict(v) if isinstance(s.get(k), nn.Module) else s.__setitem__(k, v)
        curve.update(saved["curve"])
        for bill in (here, run.meter):  # what was paid before the interruption
            bill.add(meter.Meter.of(saved["meter"]))

    def spent() -> float:
        if limit is None:
            return 0.0
        now = here.work if limit[0] == "work" else time.perf_counter() - began
        return now / limit[1]

    here = meter.Meter()
    net.train()
    with (
        run.meter.running(),
        here.running(),
        run.bar(total if limit is None else None, "train") as bar,
        run.checkpoints(folder) as saver,
    ):
        if (saved := saver.newest(place)) is not None:
            restore(saved)
            bar(loop.t)
        began = time.perf_counter()
        while loop.t < total and loop.spent < 1 and not stop() and loop.t != until:
            effects.look(loop.t, loop.t == total - 1)
            with run.global_rng("step", loop.t):
                loop.batch = to(prepare(draw(batch_size)), place)
                gradient()
                loss = float(loop.loss)  # type: ignore[attr-defined]
                if not math.isfinite(loss):
                    kept = saver.last()
                    raise Diverged(
                        f"the loss is {loss} at step {loop.t + 1}, on rows {culprits(loop)}; "
                        + (f"the last good weights are in {kept}; " if kept else "")
                        + "lower `lr`, add `clip`, or look at those rows"
                    )
                factor = float(rate())
                for group, full in zip(optimizer.param_groups, base_lr, strict=True):
                    group["lr"] = full * factor
                update()
            meter.stepped()
            loop.t += 1
            loop.spent = spent()
            record = {
                "t": loop.t,
                "loss": loss,
                "rate": factor,
                "lr": base_lr[0] * factor,
                "work": here.work,
                "tokens": here.tokens,
            }
            for key, value in (("t", loop.t), ("loss", loss), ("rate", factor)):
                curve[key].append(value)
            watch(record)
            run.log(record, often=loop.t % max(1, total // CURVE) == 0)
            bar(1, loss=loss)
            saver.maybe(state)
            if run.interrupted:
                saver.save(state)
                raise Interrupted
        if loop.t == until:
            saver.save(state)
    effects.on = False
    if loop.readout is not None and (final := readout()) is not None:
        net.load_state_dict(final)
    for part in reversed(parts):
        if fills(part, "detach"):
            part.detach(loop)
    net.eval()
    meter.watch(net)
    run.effects.extend(effects.table(parts))
    model.about["curve"] = {k: v[:: max(1, len(v) // CURVE)] for k, v in curve.items()}
    model.probe = probe_of(data, model)
    return model


def culprits(loop: Loop) -> list[int]:
    """Ids of the rows of this step whose own loss is no number; of all its rows where that cannot be told."""
    rows = loop.data.ids[loop.batch["row"].cpu().numpy()]
    try:
        bad = ~loop.losses(loop.batch).isfinite().cpu().numpy()
    except (KeyError, Bad, RuntimeError):  # a part owns the loss, and the model alone has none
        return rows.tolist()[:16]
    return rows[bad].tolist()[:16] if bad.any() and not bad.all() else rows.tolist()[:16]


def probe_of(data: Data, model: Model) -> Batch:
    """A few rows to hold the model's outputs against after every change of form; of preference rows the chosen side."""
    batch = data.batch(np.arange(min(16, len(data))), model)
    if model.input not in batch:
        batch = {k.removeprefix("chosen_"): v for k, v in batch.items() if not k.startswith("rejected_")}
    return batch


def adamw(params: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW whose decay touches matrices only; fused where the weights allow it."""
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") for p in params)
    groups = [
        {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in params if p.dim() < 2]},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=fused
    )


def mean_of(values: Tensor, kind: str, piece: Batch, batch: Batch) -> Tensor:
    """This piece's part of the mean over the whole step: by tokens (B,T), by rows (B,) or as it is (); `weight` counts."""
    if values.dim() == 0:
        return values
    weight, whole = piece.get("weight"), batch.get("weight")
    if values.dim() == 1:
        if weight is None:
            return values.sum() / len(batch["row"])
        return (values * weight).sum() / whole.sum().clamp(min=1e-12)  # type: ignore[union-attr]
    counted = (L.targets(kind, batch) != -100).sum(1)
    if weight is None:
        return values.sum() / counted.sum().clamp(min=1)
    return (values.sum(1) * weight).sum() / (counted * whole).sum().clamp(min=1e-12)


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
    if precision not in ("auto", "fp32", "bf16"):
        raise Bad(f"precision is fp32, bf16 or auto, not {precision!r}")
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return (
        device.type == "cpu"
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


def prepared(model: Model, data: Data, truncate: bool) -> Data:
    """The data with token columns if the model reads tokens and there are none yet."""
    if not len(data):
        raise Bad("there are no rows to train on")
    if model.input == "input_ids" and not {"input_ids", "chosen_input_ids"} & set(data.columns):
        data = model.encode(data, truncate=truncate)
    elif model.input != "input_ids" and model.input not in data.columns:
        raise Bad(f"the model reads {model.input!r}; there are {', '.join(data.columns)}")
    if model.kind == "classifier" and {"label"} <= set(data.columns):
        labels, logits = data["label"], getattr(getattr(model.net, "config", None), "num_labels", None)
        if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.ndim == 1:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or (logits and high >= logits):
                raise Bad(
                    f"labels run from {low} to {high}; the model knows {f'0 to {logits - 1}' if logits else 'none below 0'}"
                )
        else:
            raise Bad(
                f"column 'label' holds {data.table['label'].type}, not class numbers: map them to 0, 1, 2, ... first"
            )
    return data


def sensible(parts: tuple[Any, ...], micro_batch: int | None, lr: float, weight_decay: float) -> None:
    """Raise Bad on settings that would train nothing, or away from the data."""
    for part in parts:
        if not isinstance(part, Part):
            raise Bad(f"{part!r:.60} is not a part of a training loop: give parts, made: EMA(decay=0.99)")
    if micro_batch is not None and micro_batch < 1:
        raise Bad(f"micro_batch must be at least 1, not {micro_batch}")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise Bad(f"{name} must be a number of at least 0, not {value}")


def trainable(model: Model, data: Data, parts: tuple[Any, ...]) -> None:
    """Raise Bad on rows that a training cannot learn from, before it starts; what a part makes itself is not asked for."""
    columns, own = set(data.columns), any(fills(p, s) for p in parts for s in ("draw", "batch", "forward", "loss"))
    if "weight" in columns:
        weight = data["weight"]
        if not isinstance(weight, np.ndarray) or weight.ndim != 1:
            raise Bad(f"column 'weight' holds {data.table['weight'].type}, not numbers")
        if len(bad := data.ids[~(np.isfinite(weight) & (weight >= 0))]):
            raise Bad(f"column 'weight' must be at least 0; it is not in {len(bad):,} rows, the first {bad[0]}")
        if not weight.any():
            raise Bad("column 'weight' is zero in every row: nothing would be learned")
    if not own and model.input not in columns:
        raise Bad(
            "the rows are pairs of a chosen and a rejected answer: add a part that learns from them, such as `dpo`"
        )
    if not own and not {"label", "labels"} & columns:
        raise Bad(f"the rows have no column 'label' or 'labels' to learn; there are {', '.join(data.columns)}")
    if model.input == "features" and isinstance(data["features"], np.ndarray):
        first = next((m for m in model.net.modules() if isinstance(m, nn.Linear)), None)
        if (
            first is not None
            and type(model.net) is nn.Sequential
            and model.net[0] is first
            and data["features"].shape[-1] != first.in_features
        ):
            raise Bad(
                f"column 'features' has {data['features'].shape[-1]} numbers a row, the model reads {first.in_features}"
            )
    last = [m for m in model.net.modules() if isinstance(m, nn.Linear)][-1:]
    if model.kind == "classifier" and "label" in columns and last and not hasattr(model.net, "config"):
        if (high := int(data["label"].max())) >= last[0].out_features:
            raise Bad(f"labels run to {high}; the model knows 0 to {last[0].out_features - 1}")
    for column in ("input_ids", "chosen_input_ids", "rejected_input_ids"):
        if column not in columns:
            continue
        values, offsets = data.lists(column)
        longest, window = int(np.diff(offsets).max()), model.window
        if "segment_ids" not in columns and window is not None and longest > window:
            raise Bad(
                f"a row of {column!r} has {longest:,} tokens, the model's window is {window:,}: encode the rows anew"
            )
        table = getattr(model.net, "get_input_embeddings", lambda: None)()  # plain modules have no such method
        known = getattr(table, "num_embeddings", None)
        if known is not None and len(values) and not 0 <= values.min() <= values.max() < known:
            raise Bad(
                f"column {column!r} has tokens from {values.min()} to {values.max()}; the model knows 0 to {known - 1}"
            )
        labels = column.replace("input_ids", "labels")
        if labels in columns and not own and model.kind in ("causal", "masked", "tagger"):
            wanted, ends = data.lists(labels)
            if not np.array_equal(ends, offsets):
                raise Bad(
                    f"{labels!r} and {column!r} differ in length: each token has one label, -100 where none is learned"
                )
            if not (wanted != -100).any():
                raise Bad(f"column {labels!r} is -100 everywhere: no token would be learned")


def with_made(kinds: dict[str, str]) -> dict[str, str]:
    """The columns of the table and those that collating adds."""
    masks = {k.removesuffix("input_ids") + "attention_mask": "tokens" for k in kinds if k.endswith("input_ids")}
    return {**kinds, **masks}


def planned(data: Data, size: int, **budget: Any) -> tuple[int, tuple[str, float] | None]:
    """Steps to run, and the limit that ends them when it is not counted in steps. Raises Bad unless one budget is given."""
    given = {k: v for k, v in budget.items() if v is not None}
    if len(given) != 1:
        raise Bad(f"give one budget of {', '.join(budget)}" + (f", not {' and '.join(given)}" if given else ""))
    ((unit, raw),) = given.items()
    value = amount(raw)
    if not 0 < value < math.inf:
        raise Bad(f"{unit} must be above 0, not {raw}")
    if size < 1:
        raise Bad(f"batch_size must be at least 1, not {size}")
    if unit in ("seconds", "work"):
        return 1 << 40, (unit, value)
    if unit == "tokens":
        column = next((c for c in ("input_ids", "chosen_input_ids") if c in data.columns), None)
        if column is None:
            raise Bad("a budget in tokens needs token rows; give steps, epochs or rows")
        _, offsets = data.lists(column)
        value /= max(1.0, float(offsets[-1]) / len(data)) * size
    elif unit == "epochs":
        value = value * len(data) / size
    elif unit == "rows":
        value /= size
    return max(1, round(value)), None
