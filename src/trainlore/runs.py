"""What a method may ask of the world: random numbers, passes through a model, more training."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainlore import randomness
from trainlore.errors import Bad
from trainlore.meter import Meter, watch
from trainlore.nouns import Batch, Data, Model, Report
from trainlore.nouns.columns import gathered_table

if TYPE_CHECKING:
    from trainlore.checkpoints import Answers, Checkpoints

EVERY = 20.0  # seconds between checkpoints
BLOCK = 1 << 14  # rows that are encoded and sorted by length together, and travel together on a cluster
TOKENS = 4096  # of a pass on a CPU, with padding: what its caches like, a quarter faster than 64 long rows at once


class Interrupted(KeyboardInterrupt):
    """Stopped by the user between two steps, with everything saved."""


@dataclass(eq=False)
class Run:
    """One seed, one meter, and a folder to keep things in if there is one."""

    seed: int = 0
    folder: Path | None = None
    bars: Any = None  # a rich Progress, or nothing to show
    meter: Meter = field(default_factory=Meter)
    effects: list[dict[str, Any]] = field(default_factory=list)  # what each part did, a row a part and fit
    parity: list[dict[str, Any]] = field(default_factory=list)  # what each change of form did to the outputs
    interrupted: bool = False
    label: str = ""  # the step that runs
    heat: Any = None  # what a race adds, if this run is one of many
    profile: bool = False  # whether trainings write a trace of a few steps into the folder
    trackers: list[Any] = field(default_factory=list)  # who else is told the numbers of trainings; see reporting
    on: str = "local"  # where passes over more than a block of rows run: here, or on a "ray" cluster
    _fits: int = 0
    _passes: int = 0  # over rows, of this step
    _training: int = 0  # trainings that run now, one inside another

    # ---- randomness, by name

    def rng(self, *key: Any) -> torch.Generator:
        """A torch stream named by its key: the same key gives the same numbers, whoever else draws."""
        return torch.Generator().manual_seed(randomness.number(self.seed, *key))

    def numpy(self, *key: Any) -> np.random.Generator:
        """A numpy stream named by its key."""
        return np.random.default_rng(randomness.number(self.seed, *key))

    def global_rng(self, *key: Any) -> AbstractContextManager[None]:
        """Dropout and initializers draw from the global streams: name those too, and put them back."""
        return randomness.global_streams(self.seed, *key)

    # ---- passes over rows

    def infer(self, model: Model, data: Data, what: Any, size: int = 64, truncate: bool = True) -> Any:
        """One pass over all rows. `what(batch, out)` gives one value (B,...) a row; a list of such gives a list.

        Rows of like length go together, and the answer is in the order of the rows: a tensor (N,...) on the CPU.
        """
        several = isinstance(what, list | tuple)
        values = self._pass(model, data, partial(_asked, tuple(what) if several else (what,)), size, truncate)
        return values if several else values[0]

    def embed(self, model: Model, data: Data, size: int = 64) -> Tensor:
        """Mean of the last hidden states over real tokens (N,D); of a plain net, what its last layer reads."""
        return self._pass(model, data, _hidden, size, truncate=True)[0]

    def _pass(self, model: Model, data: Data, read: Any, size: int, truncate: bool) -> list[Tensor]:
        """All that `read(model, batch)` gives, over all rows: each (N,...) on the CPU."""
        found, gpu = [], model.device.type == "cuda"
        with self.meter.running(), self.bar(len(data), "infer") as bar, self._answers(data) as kept:

            def told(rows: int) -> None:
                bar(rows)
                if self.interrupted:
                    raise Interrupted

            here = None if self.away(data) else told
            how = {"model": model, "read": read, "size": size, "truncate": truncate, "told": here, "kept": kept}
            for values in self.blocks(data, partial(_passed, **how), gpu=gpu):
                found.append(values)
                if here is None:
                    told(len(values[0]))
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    @contextmanager
    def _answers(self, data: Data) -> Iterator[Answers | None]:
        """What keeps the answers of a pass as it goes, where the step is one of a run in a folder.

        Passes in a training are not kept: it goes on from its own checkpoint, and would make others after it."""
        if self.folder is None or not self.label or self._training or self.away(data):
            yield None
            return
        from trainlore.checkpoints import Answers
        from trainlore.team import Team

        self._passes += 1
        folder = self.folder / "checkpoints" / f"{self.label}-pass-{self._passes:03d}"
        bill = Meter()
        kept = Answers(folder if Team().size == 1 else None, EVERY, bill)
        with bill.running():
            try:
                yield kept
            except Interrupted:
                kept.save()
                raise
        kept.close()

    def blocks(
        self, data: Data, what: Callable[[Data, int], Any], columns: Sequence[str] | None = None, gpu: bool = False
    ) -> Iterator[Any]:
        """`what(rows, first)` of each block of rows, in order: here, or on the cluster if the run is on one.

        `rows` holds at most 16,384 rows (of these columns) and `first` is the place of its first in `data`. `what` may
        be sent to another process, so it changes nothing outside itself; a block's answer must not depend on others.
        """
        if columns is not None:
            for name in columns:
                data.need_column(name)
            data = replace(data, table=data.table.select(list(columns)))
        if self.away(data):
            from trainlore import cluster

            yield from cluster.over(_blocks(data), what, gpu)
        else:
            for rows, first in _blocks(data):
                yield what(rows, first)

    def away(self, data: Data) -> bool:
        """Whether passes over this data run on a cluster."""
        return self.on == "ray" and len(data) > BLOCK

    @torch.no_grad()
    def generate(
        self,
        model: Model,
        prompts: Sequence[str],
        new: int = 32,
        temperature: float = 1.0,
        top_k: int | None = None,
        key: tuple[Any, ...] = (),
        size: int = 64,
    ) -> list[str]:
        """A completion of at most `new` tokens for each prompt; temperature 0 is greedy. Named by `key`, metered."""
        tok = model.tokenizer
        if tok is None:
            raise Bad(f"{model!r} has no tokenizer to write with")
        if model.kind not in ("causal", "seq2seq"):
            raise Bad(f"a model of kind {model.kind} does not write text")
        if not 0 <= temperature < float("inf"):
            raise Bad(f"temperature={temperature}: give 0, which is greedy, or more")
        side, tok.padding_side = tok.padding_side, "left" if model.kind == "causal" else "right"
        how: dict[str, Any] = {"max_new_tokens": new, "do_sample": temperature > 0, "pad_token_id": tok.pad_token_id}
        if temperature > 0:
            how |= {"temperature": temperature, "top_k": top_k or 0}
        room = (model.window or 1 << 30) - new
        texts: list[str] = []
        was = model.net.training
        model.net.eval()
        try:
            with self.meter.running(), self.global_rng("generate", *key):
                for at in range(0, len(prompts), size):
                    asked = tok(
                        list(prompts[at : at + size]), return_tensors="pt", padding=True, add_special_tokens=False
                    )
                    asked = {
                        k: v[:, -room:].to(model.device)
                        for k, v in asked.items()
                        if k in ("input_ids", "attention_mask")
                    }
                    out = model.net.generate(**asked, **how)  # type: ignore[operator]
                    start = asked["input_ids"].shape[1] if model.kind == "causal" else 0
                    texts += tok.batch_decode(out[:, start:], skip_special_tokens=True)
        finally:
            tok.padding_side = side
            model.net.train(was)
        return texts

    # ---- more of the engine

    def fit(self, model: Model, data: Data, *parts: Any, **how: Any) -> Model:
        """Train the model in place; see `trainlore.loop.fit` for budgets and options."""
        from trainlore.loop import fit

        self._training += 1
        try:
            return fit(self, model, data, *parts, **how)
        finally:
            self._training -= 1

    def step(self, method: Any, *nouns: Any) -> Any:
        """Run a method as a step: its nouns checked, its trail written, its bill on the meter, its form gated."""
        from trainlore.steps import run_step

        return run_step(self, method, *nouns)

    # ---- telling

    def log(self, record: dict[str, Any], often: bool = True) -> None:
        """Append a record to the run's metrics.jsonl."""
        if often:
            numbers = {k: float(v) for k, v in record.items() if k != "t" and isinstance(v, int | float)}
            for tell in self.trackers:
                tell(self.label, int(record.get("t", 0)), numbers)
        if self.folder is not None and often:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.label, **record}) + "\n")

    @contextmanager
    def bar(self, total: float | None, what: str) -> Iterator[Callable[..., None]]:
        """A progress bar; the function it gives advances it."""
        if self.bars is None:
            yield lambda n, **info: None
            return
        task, last = self.bars.add_task(f"  {what}", total=total, info=""), [0.0]
        waiting = [0.0]

        def advance(n: float, **info: Any) -> None:
            waiting[0] += n
            now = time.monotonic()
            if now - last[0] > 0.1:  # drawing costs more than a small step
                last[0] = now
                self.bars.update(task, advance=waiting[0], info=" ".join(f"{k} {v:.3f}" for k, v in info.items()))
                waiting[0] = 0.0

        try:
            yield advance
        finally:
            self.bars.remove_task(task)

    @contextmanager
    def profiler(self) -> Iterator[Callable[[], None]]:
        """Where `--profile` asks for it, a trace of steps 5 to 10 of the training; call what it gives after each step."""
        if not self.profile or self.folder is None:
            yield lambda: None
            return
        from torch.profiler import profile, schedule

        folder, label = self.folder, self.label or "train"

        def write(trace: Any) -> None:
            trace.export_chrome_trace(str(folder / f"profile-{label}.json"))
            (folder / f"profile-{label}.txt").write_text(
                trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=30)
            )

        with profile(schedule=schedule(wait=2, warmup=3, active=5, repeat=1), on_trace_ready=write) as trace:
            yield trace.step

    def checkpoints(self, folder: Path | None, team: Any = None) -> Checkpoints:
        """Where this fit keeps its checkpoints: the folder given, or one of the run's, named by its place in the step."""
        from trainlore.checkpoints import Checkpoints

        self._fits += 1
        if folder is None and self.folder is not None and self.label:
            folder = self.folder / "checkpoints" / f"{self.label}-{self._fits:03d}"
        return Checkpoints(folder, EVERY, team)


def noun(value: Any) -> Any:
    """What a person hands a method, as a noun: lists, frames, paths and tables are data, modules are models."""
    if isinstance(value, Data | Model | Report):
        return value
    if isinstance(value, torch.nn.Module):
        return Model.of(value)
    return Data.of(value)


def _blocks(data: Data) -> Iterator[tuple[Data, int]]:
    """Consecutive rows, each block a table of its own, and the place of its first row."""
    if len(data) <= BLOCK:
        yield data, 0
        return
    ids = data.ids
    for at in range(0, len(data), BLOCK):
        if data.rows is None:
            table = data.table.slice(at, BLOCK)
        else:
            table = gathered_table(data.table, data.rows[at : at + BLOCK])
        yield Data(table, base_ids=ids[at : at + BLOCK]), at


@torch.no_grad()
def _passed(
    rows: Data,
    first: int,
    *,
    model: Model,
    read: Callable[[Model, Batch, Batch], Sequence[Tensor]],
    size: int,
    truncate: bool,
    told: Callable[[int], None] | None,
    kept: Answers | None = None,
) -> list[Tensor]:
    """All that `read` gives, over a block of rows: each (R,...) on the CPU, in the order of the rows.

    `read(model, batch, given)`: `given` is what of the batch the network is to be given. On an accelerator the next batch
    is made, and the last answer fetched, while this one is computed.
    """
    from trainlore.feeding import Ahead
    from trainlore.placement import to

    data, device, was = readable(model, rows, truncate), model.device, model.net.training
    cuts = passes(data, size, TOKENS if device.type == "cpu" else None)
    hidden = {"attention_mask"} if _unmasked(model, rows) else set()
    found: list[list[Tensor]] = []
    while kept is not None and (first, len(found)) in kept.known:  # by a process that was killed
        found.append(kept.known.pop((first, len(found))))
        if told is not None:
            told(len(cuts[len(found) - 1]))

    if kept is not None and found:
        kept.go_on()

    def fetched(values: list[Tensor], at: Any) -> None:
        found.append([v.cpu() for v in values])
        if kept is not None:
            kept.add(first, len(found) - 1, found[-1], at)

    begin = len(found)
    waiting: list[Tensor] = []
    away = device.type == "cuda"
    model.net.eval()
    try:
        with Ahead(lambda t, n: data.batch(cuts[t], model) if t < len(cuts) else {}, int(away), away) as ahead:
            for t in range(begin, len(cuts)):
                batch = to(ahead(t, 0), device)
                batch["row"] = batch["row"] + first
                before = kept and kept.now()
                values = [v.detach() for v in read(model, batch, {k: v for k, v in batch.items() if k not in hidden})]
                if t > begin:
                    fetched(waiting, before)
                waiting = values
                if told is not None:
                    told(len(batch["row"]))
        if begin < len(cuts):
            fetched(waiting, kept and kept.now())
    finally:
        model.net.train(was)
    back = torch.from_numpy(np.argsort(np.concatenate(cuts), kind="stable"))
    return [torch.cat(parts)[back] for parts in zip(*found, strict=True)]


def passes(data: Data, size: int, tokens: int | None = None) -> list[np.ndarray]:
    """Row positions of each pass over the data: at most `size` rows and, if given, `tokens` tokens with their padding.

    Token rows go from long to short: one pass pads little, and memory peaks at once.
    """
    column = next((c for c in ("input_ids", "chosen_input_ids") if c in data.columns), None)
    if column is None:
        return np.split(np.arange(len(data)), range(size, len(data), size))
    length = np.diff(data.lists(column)[1])
    order, found, at = np.argsort(-length, kind="stable"), [], 0
    while at < len(order):
        wide = max(8, -(-int(length[order[at]]) // 8) * 8)
        found.append(order[at : at + (size if tokens is None else max(1, min(size, tokens // wide)))])
        at += len(found[-1])
    return found


def _unmasked(model: Model, rows: Data) -> bool:
    """Whether the network can do without a mask of the padding: it is on the right, where no place of a causal one looks.

    Without it attention runs in its fast causal form, which reads half of the pairs.
    """
    looks_back = getattr(getattr(model.net, "config", None), "is_causal", True)
    return model.kind == "causal" and looks_back and "attention_mask" not in rows.columns


def readable(model: Model, rows: Data, truncate: bool = True, who: str = "", losses: bool = False) -> Data:
    """The rows with the column that the model reads, made of their text if need be. `losses`: their losses are wanted too.

    Raises Bad, naming whose rows they are if that is given, where that cannot be.
    """
    from trainlore.readiness import prepared, trainable

    if who:
        rows.need(who=who)
    try:
        data = prepared(model, rows, truncate)
        if model.input not in data.columns:  # then they are pairs: without either column `prepared` has said so
            raise Bad(
                f"the model reads {model.input!r}; there are {', '.join(rows.columns)}, which are pairs of a chosen and a "
                "rejected answer: give one text a row, such as the chosen answer as `completion`"
            )
        if losses:
            trainable(model, data, ())
    except Bad as error:
        raise (Bad(f"{who}: {error}") if who else error) from None
    return data


def _asked(what: Sequence[Callable[[Batch, Tensor], Tensor]], model: Model, batch: Batch, given: Batch) -> list[Tensor]:
    out = None
    try:
        out = model(given)
        return [function(batch, out) for function in what]
    except KeyError as error:
        if error.args != ("labels",) or "labels" in batch:
            raise
        there = ", ".join(k for k in batch if k != "row")
        raise Bad(f"the rows have no column 'label' or 'labels'; a batch of them holds {there}") from None
    except (IndexError, RuntimeError):  # torch's words for a class that the model does not know
        y = batch.get("labels")
        if out is None or model.kind != "classifier" or y is None or y.dim() != 1 or y.is_floating_point():
            raise
        if 0 <= (low := int(y.min())) <= (high := int(y.max())) < out.shape[-1]:
            raise
        raise Bad(f"labels run from {low} to {high}; the model knows 0 to {out.shape[-1] - 1}") from None


def _hidden(model: Model, batch: Batch, given: Batch) -> list[Tensor]:
    return [_last(model, batch, given)]


def _last(model: Model, batch: Batch, given: Batch) -> Tensor:
    config = getattr(model.net, "config", None)
    if config is None:
        seen: list[Tensor] = []
        last = [m for m in model.net.modules() if isinstance(m, torch.nn.Linear)][-1]
        hook = last.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        try:
            model(given)
        finally:
            hook.remove()
        return seen[-1].float()
    fed: dict[str, Any] = {k: given[k] for k in ("input_ids", "attention_mask", "pixel_values") if k in given}
    body, hidden = _body(model), None
    if model.input == "input_ids":  # without the output layer: its logits are much of the work, and nobody reads them
        hidden = getattr(
            body(**fed, **({"use_cache": False} if model.kind == "causal" else {})), "last_hidden_state", None
        )
    if hidden is None:
        hidden = (body if model.kind == "seq2seq" else model.net)(**fed, output_hidden_states=True).hidden_states[-1]
    hidden, mask = hidden.float(), batch.get("attention_mask")
    if mask is None or mask.shape != hidden.shape[:2]:
        return hidden.mean(1)
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def _body(model: Model) -> torch.nn.Module:
    """The network under the output layer (of a seq2seq model its encoder), on the meter like the whole."""
    net: Any = model.net
    body = net.get_encoder() if model.kind == "seq2seq" else getattr(net, "base_model", net)
    if body is not net and getattr(body, "_priced", None) is not net._flops:  # new, or changed since
        watch(body)
        object.__setattr__(body, "_priced", net._flops)
    return body
