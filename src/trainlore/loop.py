"""The training loop. It owns time, devices, precision, accumulation, saving; parts own ideas."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainlore import meter
from trainlore.effects import Effects
from trainlore.errors import Bad
from trainlore.feeding import Ahead
from trainlore.memory import Settings, foreseen, shortage_told
from trainlore.nouns import Batch, Data, Model
from trainlore.placement import (
    Scale,
    autocast,
    checkpointed,
    choose_device,
    chosen_precision,
    compiled,
    split,
    to,
)
from trainlore.primitives import losses as L
from trainlore.primitives.sampling import Sampler
from trainlore.progress import Curve
from trainlore.readiness import planned, prepared, sensible, trainable, with_made
from trainlore.runs import Interrupted, Run
from trainlore.slots import check, fills, fold
from trainlore.spikes import Guard
from trainlore.team import Team, together

CURVE = 2000  # points of the curve kept with the model


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
    compile: str = "",
    shard: bool = False,
    checkpoint_activations: bool = False,
    workers: int | None = None,
    spikes: str = "ignore",
    truncate: bool = False,
    until: int | None = None,
    folder: Path | None = None,
) -> Model:
    """Train the model (in place) until one budget is spent and hand it back.

    Budgets: `steps`, `epochs`, `tokens` ("2M"), `rows`, `seconds` or `work` (FLOPs), exactly one. `batch_size` rows make a step,
    in pieces of `micro_batch` that give the same gradient. `precision`: fp32, bf16, fp16, or auto (bf16 where the machine has
    it). `compile`: a backend for the model's blocks ("inductor"). `checkpoint_activations`: less memory, more work.
    `workers`: threads that make batches ahead (one beside an accelerator). `spikes`: what to do where the loss or the
    gradient leaps: ignore, stop or roll_back (go back a little and pass those rows over). A checkpoint goes to `folder` now
    and then and whatever is there is gone on from. `until` stops early at a step. Under `torchrun` the batch is shared out,
    and with `shard` the weights are (FSDP2).
    """
    sensible(parts, micro_batch, lr, weight_decay)
    data = prepared(model, data, truncate)
    check(parts, with_made(data.kinds))
    trainable(model, data, parts)
    place = choose_device(device, Team().size)
    kind, team = chosen_precision(precision, place), Team(place)
    together(parts, team)
    shards = ExitStack()
    shares = team.size if shard else 1  # of every weight
    if shares > 1:
        from trainlore.sharding import fit_for_shards, sharded  # half a second of imports that few need

        fit_for_shards(parts)
    total, limit = planned(
        data, batch_size, steps=steps, epochs=epochs, tokens=tokens, rows=rows, seconds=seconds, work=work
    )
    loop = Loop(run, model, data, total, batch_size, place)
    settings = Settings(micro_batch, checkpoint_activations, kind, not all(p.rowwise for p in parts), shares)
    weights_before = {n: p.requires_grad for n, p in model.net.named_parameters()}
    with run.global_rng("start"), shortage_told(loop, settings):
        model.net.to(place)
        for part in parts:  # all structure first, so that whatever is remembered next is of the final shape
            if fills(part, "attach"):
                part.attach(loop)
        model.net.to(place)
        if shares > 1:
            shards.enter_context(sharded(model, team))
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
    cast, scale = autocast(kind, place), Scale(kind)
    sampler = Sampler(len(data), lambda *key: loop.rng(*key))

    def base_draw(n: int) -> Batch:
        if not any(fills(p, "odds") for p in parts):
            return ahead(loop.t, n)
        return data.batch(sampler.draw(loop.t, n, odds()), model)

    def base_gradient() -> None:
        """Token- or row-weighted mean over the whole step, however small the pieces and whoever computes them."""
        optimizer.zero_grad(set_to_none=True)
        batch, loss = loop.batch, 0.0
        pieces = split(team.share(batch), micro_batch)
        if len(pieces) > 1 and settings.whole:
            raise Bad("a part has one loss for the whole batch, which cannot be split: leave micro_batch out")
        # Dropout of each process's rows by numbers of its own.
        with run.global_rng("share", loop.t, team.rank) if team.size > 1 else nullcontext():
            for piece in pieces:
                with cast:
                    values = row_loss(piece, forward(piece))
                share = mean_of(values, model.kind, piece, batch)
                (share * scale.factor).backward()
                loss += share.detach()
        extra = penalty()
        if isinstance(extra, Tensor):
            (extra * (scale.factor / team.size)).backward()
            loss += extra.detach() / team.size
        scale.undo(trained)
        team.sum_gradients(trained)
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
    more = [p for _, s in bound for m in s.values() if isinstance(m, nn.Module) for p in m.parameters()]
    trained += [p for p in more if p.requires_grad and id(p) not in known]
    if not trained:
        raise Bad(f"{model!r} has no weight to train: all are frozen")
    optimizer = fold("optimizer", bound, loop, lambda ps: adamw(ps, lr, weight_decay), effects)(trained)
    update = fold("update", bound, loop, optimizer.step, effects)
    stop = fold("stop", bound, loop, lambda: False, effects)
    watch = fold("watch", bound, loop, lambda record: None, effects)
    readout = fold("readout", bound, loop, net.state_dict, effects)
    loop.readout = readout if any(fills(p, "readout") for p in parts) else None
    base_lr = [g["lr"] for g in optimizer.param_groups]
    curve = Curve(CURVE)

    def state() -> dict[str, Any]:
        return {
            "t": loop.t,
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "parts": [{k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in s.items()} for _, s in bound],
            "curve": curve.state(),
            "spent": loop.spent,
            "seconds": time.perf_counter() - began,
            "meter": here.state(),
            "scale": scale.state(),
            "guard": guard.state(),
        }

    def restore(saved: dict[str, Any]) -> None:
        loop.t, loop.spent = saved["t"], saved["spent"]
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        for (_, s), old in zip(bound, saved["parts"], strict=True):
            for k, v in old.items():
                s[k].load_state_dict(v) if isinstance(s.get(k), nn.Module) else s.__setitem__(k, v)
        curve.restore(saved["curve"])
        scale.restore(saved["scale"])
        guard.restore(saved["guard"])

    def spent() -> float:
        if limit is None:
            return 0.0
        now = here.work if limit[0] == "work" else time.perf_counter() - began
        return now / limit[1]

    here, began = meter.Meter(), time.perf_counter()
    guard = Guard(spikes, run.folder if team.leads else None, run.label, team)
    net.train()
    with ExitStack() as open_:
        open_.enter_context(torch.enable_grad())  # whoever asks for a training, in whatever mode
        open_.enter_context(run.meter.running())
        open_.enter_context(here.running())
        bar = open_.enter_context(run.bar(total if limit is None else None, "train"))
        saver = open_.enter_context(run.checkpoints(folder, team))
        open_.enter_context(checkpointed(net, checkpoint_activations))
        foreseen(loop, settings, trained, cast, parts, team)
        told = open_.enter_context(compiled(model, compile))
        threads = workers if workers is not None else int(place.type == "cuda")
        ahead = open_.enter_context(
            Ahead(lambda t, n: data.batch(sampler.draw(t, n, None), model), threads, place.type == "cuda")
        )
        trace = open_.enter_context(run.profiler() if team.leads else nullcontext(lambda: None))
        began = time.perf_counter()
        if (saved := saver.newest(place, shares > 1)) is not None:
            if shares > 1:
                from trainlore.sharding import shared_out

                saved = shared_out(saved, state(), optimizer)  # of what one process wrote
            restore(saved)
            began -= saved["seconds"]  # a budget in seconds counts those before the interruption
            for bill in (here, run.meter):  # what was paid before the interruption
                bill.add(meter.Meter.of(saved["meter"]))
            bar(loop.t)
            saved = None  # its weights would take their room beside those in training
        while loop.t < total and loop.spent < 1 and not stop() and loop.t != until:
            if loop.t in guard.skipped:
                loop.t += 1
                continue
            effects.look(loop.t, loop.t == total - 1)
            paid = here.work
            with run.global_rng("step", loop.t), shortage_told(loop, settings):
                guard.hold(loop.t, state)
                loop.batch = to(prepare(draw(batch_size)), place)
                gradient()
                loss, everyone, asked, due = team.sums(
                    float(loop.loss),  # type: ignore[attr-defined]
                    here.work - paid,
                    run.interrupted,
                    saver.due(),
                )
                meter.elsewhere(everyone - (here.work - paid))
                sound = scale.sound(trained, team)
                if why := guard.unusual(loss, trained, overflowed=not sound and scale.factor > 1):
                    restore(guard.act(loop.t, why, culprits(loop, micro_batch), saver.last_good))
                    continue
                factor = float(rate())
                for group, full in zip(optimizer.param_groups, base_lr, strict=True):
                    group["lr"] = full * factor
                if sound:
                    update()
            meter.stepped()
            loop.t += 1
            loop.spent = team.told(spent()) if limit is not None else 0.0
            record = {
                "t": loop.t,
                "loss": loss,
                "rate": factor,
                "lr": base_lr[0] * factor,
                "work": here.work,
                "tokens": here.tokens,
            }
            noted = curve.add(loop.t, loss, factor)
            watch(record)
            often = noted if limit is not None else loop.t % max(1, total // CURVE) == 0
            run.log(record, often=team.leads and often)
            bar(1, loss=loss)
            trace()
            if due or asked:
                saver.save(state)
            if asked:
                raise Interrupted
        if loop.t == until:
            saver.save(state)
    team.alike(net.state_dict().values(), "the weights")
    effects.on = False
    if loop.readout is not None and (final := readout()) is not None:
        net.load_state_dict(final)
    shards.close()
    net = model.net
    for part in reversed(parts):
        if fills(part, "detach"):
            part.detach(loop)
    net.eval()
    meter.watch(net)
    run.effects.extend(effects.table(parts))
    model.about["curve"] = curve.thin()
    model.about.pop("compiled", None)  # of an earlier training
    if told:
        model.about["compiled"] = told
    model.probe = probe_of(data, model)
    return model


def culprits(loop: Loop, micro: int | None) -> list[int]:
    """Ids of the rows of this step, those with the highest loss first; of losses that are no numbers these rows alone."""
    rows = loop.data.ids[loop.batch["row"].cpu().numpy()]
    try:
        losses = torch.cat([loop.losses(piece).float().cpu() for piece in split(loop.batch, micro)]).numpy()
    except (KeyError, Bad, RuntimeError):  # a part owns the loss, and the model alone has none
        return rows.tolist()
    bad = ~np.isfinite(losses)
    if bad.any() and not bad.all():
        return rows[bad].tolist()
    return rows[np.argsort(-np.where(bad, 0.0, losses), kind="stable")].tolist()


def probe_of(data: Data, model: Model) -> Batch:
    """A few rows to hold the model's outputs against after every change of form; of preference rows the chosen side."""
    batch = data.batch(np.arange(min(16, len(data))), model)
    if model.input not in batch:
        batch = {k.removeprefix("chosen_"): v for k, v in batch.items() if not k.startswith("rejected_")}
    return batch


def adamw(params: list[nn.Parameter], lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW whose decay touches matrices only; fused where the weights allow it."""
    fused = all(
        p.is_floating_point() and p.device.type in ("cpu", "cuda", "mps") and type(p.data) is Tensor for p in params
    )
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
        if piece is not batch:
            raise Bad("a loss of one number is that of the whole batch, which cannot be split: say `rowwise = False`")
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
