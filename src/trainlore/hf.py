"""A `transformers.Trainer` that takes parts, for those who stay with it: the same methods, in somebody else's loop.

from trainlore.hf import Trainer
Trainer(model=net, args=args, train_dataset=rows, parts=[LabelSmoothing(amount=0.1), EMA(decay=0.999)]).train()
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

try:
    import transformers
    from transformers import TrainerCallback
except ImportError as error:  # its Trainer asks for accelerate
    raise ImportError("trainlore.hf needs transformers with its trainer: pip install 'trainlore[hf]'") from error

from trainlore import meter
from trainlore.effects import Effects
from trainlore.errors import Bad
from trainlore.loop import Loop, mean_of
from trainlore.nouns import Data, Model
from trainlore.primitives import losses as L
from trainlore.readiness import with_made
from trainlore.runs import Run
from trainlore.slots import SLOTS, check, fills, fold
from trainlore.trees import load_tree, save_tree

HONOURED = ("batch", "forward", "loss", "penalty", "rate", "optimizer", "update", "readout", "stop", "watch")
REFUSED = {
    "odds": "the order of rows is the Trainer's",
    "draw": "the order of rows is the Trainer's",
    "gradient": "the backward pass is accelerate's",
}


class Trainer(transformers.Trainer):
    """transformers.Trainer with parts of a training loop.

    Honoured are the slots batch, forward, loss, penalty, rate (it multiplies the Trainer's schedule), optimizer, update,
    readout (evaluation and the final weights), stop and watch, and attach, start, detach. A part with another slot is
    refused by name before training. Token-weighted means are exact under gradient accumulation. Parts' state lies in
    every checkpoint. One process.
    """

    def __init__(self, *args: Any, parts: Sequence[Any] = (), kind: str | None = None, **more: Any) -> None:
        for part in parts:
            name = type(part).card["name"] if hasattr(type(part), "card") else type(part).__name__
            for slot, why in REFUSED.items():
                if fills(part, slot):
                    raise Bad(f"{name} acts in `{slot}`, which does not fit here ({why}): use `trainlore run`")
        super().__init__(*args, **more)
        if self.args.world_size > 1 or self.args.n_gpu > 1:
            raise Bad("parts run on one process here; for several there is `torchrun -m trainlore run`")
        self.parts = tuple(parts)
        self.net: Any = self.model
        self.loss_is_scaled_for_ga = True
        self.run = Run(self.args.seed)
        self.noun = Model.of(self.model, kind)
        self.noun.tokenizer = self.processing_class
        self.effects: list[dict[str, Any]] = []  # what each part did, after training
        self._live = False
        self._step_loss = torch.zeros(())
        if self.parts:
            self.args.remove_unused_columns = False
            self.add_callback(_Steps(self))
            if self.train_dataset is not None:
                self.train_dataset = _Numbered(self.train_dataset)
            self._collate, self.data_collator = self.data_collator, self._collated

    # ---- batches know their rows

    def _collated(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = [row.get("row", -1) for row in rows]
        known = set(self._known())
        batch = dict(self._collate([{k: v for k, v in row.items() if k in known} for row in rows]))
        batch["row"] = torch.tensor(numbers)
        return batch

    def _known(self) -> list[str]:
        self._set_signature_columns_if_needed()
        return [*(self._signature_columns or ()), *(name for part in self.parts for name in part.needs)]

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: torch.device) -> tuple[list[Any], Any]:
        """The batches of a step, as the parts make them, and the tokens or rows that count in all of them together."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not (self.parts and self._live):
            return samples, self._get_num_items_in_batch(samples, device)
        with self.run.global_rng("batch", self.loop.t):
            samples = [self._prepare(dict(self._prepare_inputs(batch))) for batch in samples]
        return samples, sum(_counted(self.noun.kind, batch) for batch in samples)

    # ---- the slots

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The parts' loss while training; the Trainer's own in evaluation."""
        if not (self.parts and self._live and model.training):
            inputs.pop("row", None)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self.loop.batch = batch = inputs
        out = self._forward(batch)
        values = self._row_loss(batch, out)
        loss = mean_of(values, self.noun.kind, batch, batch)
        if values.dim() and num_items_in_batch:
            loss = loss * (_counted(self.noun.kind, batch) / num_items_in_batch)
        extra = self._penalty()
        if isinstance(extra, Tensor):
            loss = loss + extra / self.current_gradient_accumulation_steps
        self._step_loss = self._step_loss + loss.detach()
        return (loss, out) if return_outputs else loss

    def create_optimizer(self, *args: Any, **more: Any) -> torch.optim.Optimizer:
        """The Trainer's, or the part's that makes one; its step goes through the parts' updates."""
        self.optimizer: Any
        owner = next(((p, s) for p, s in getattr(self, "_bound", ()) if fills(p, "optimizer")), None)
        if owner is not None and self.optimizer is None:
            weights = [p for p in self.net.parameters() if p.requires_grad]
            self.optimizer = owner[0].optimizer(self.loop, owner[1], weights)
        else:
            super().create_optimizer(*args, **more)
        own = [m for _, s in getattr(self, "_bound", ()) for m in s.values() if isinstance(m, nn.Module)]
        if extra := [p for m in own for p in m.parameters() if p.requires_grad]:
            self.optimizer.add_param_group({"params": extra})
        if any(fills(p, "update") for p in self.parts):
            update = fold("update", self._bound, self.loop, self.optimizer.step, self._effects)
            # A bound method, as schedulers wrap it, which takes the closure that nobody gives.
            self.optimizer.step = MethodType(lambda optimizer, closure=None: update(), self.optimizer)
        return self.optimizer

    def train(self, *args: Any, **more: Any) -> Any:
        """Train as the Trainer does, with the parts attached, and hand on the weights they read out."""
        if not self.parts:
            return super().train(*args, **more)
        self._begin()
        try:
            with self.run.meter.running():
                result = super().train(*args, **more)
        finally:
            self._live = False
        final = self._readout()
        if final is not None:
            self.net.load_state_dict(final)
        for part in reversed(self.parts):
            if fills(part, "detach"):
                part.detach(self.loop)
        self.effects = self._effects.table(self.parts)
        return result

    def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
        """Judge the weights that would be handed on."""
        with self._handed_on():
            return super().evaluate(*args, **more)

    # ---- what holds it together

    def _begin(self) -> None:
        if self.train_dataset is None:
            raise Bad("there are no rows to train on: give train_dataset")
        rows = self.train_dataset.rows if isinstance(self.train_dataset, _Numbered) else self.train_dataset
        data = Data.of(rows if type(rows).__module__.startswith("datasets.") else list(rows))  # type: ignore[arg-type]
        kinds = {**with_made(data.kinds)}
        if "label" in kinds:
            kinds["labels"] = kinds["label"]
        check(self.parts, kinds)
        size = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        epoch = math.ceil(len(data) / size)
        steps = self.args.max_steps if self.args.max_steps > 0 else math.ceil(epoch * self.args.num_train_epochs)
        if self.args.gradient_accumulation_steps > 1 and not all(p.rowwise for p in self.parts):
            raise Bad("a part has one loss for the whole batch, which accumulation splits: leave accumulation out")
        self.loop = Loop(self.run, self.noun, data, steps, size, self.args.device)
        with self.run.global_rng("start"):
            for part in self.parts:
                if fills(part, "attach"):
                    part.attach(self.loop)
            meter.watch(self.net)
            self._bound = [(part, part.start(self.loop)) for part in self.parts]
        for _, s in self._bound:
            for module in s.values():
                if isinstance(module, nn.Module):
                    module.to(self.args.device)
        trained = [p for p in self.net.parameters() if p.requires_grad]
        self._effects = Effects(lambda: trained)

        def folded(slot: str, base: Any) -> Any:
            return fold(slot, self._bound, self.loop, base, self._effects)

        self._prepare = folded("batch", lambda batch: batch)
        self._forward = folded("forward", self.noun)
        self._row_loss = folded("loss", lambda batch, out: L.rowwise(self.noun.kind, batch, out))
        self._penalty = folded("penalty", lambda: 0.0)
        self._rate = folded("rate", lambda: 1.0)
        self._watch = folded("watch", lambda record: None)
        self._stop = folded("stop", lambda: False)
        own = any(fills(p, "readout") for p in self.parts)
        self._readout = folded("readout", self.net.state_dict) if own else lambda: None
        self._live, self._step_loss = True, torch.zeros((), device=self.args.device)
        if self.optimizer is not None:  # a second training: its step is wrapped anew
            self.optimizer = None

    @contextmanager
    def _handed_on(self) -> Any:
        final = self._readout() if self.parts and self._live else None
        if final is None:
            yield
            return
        kept = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        self.net.load_state_dict(final)
        try:
            yield
        finally:
            self.net.load_state_dict(kept)

    def _save_checkpoint(self, *args: Any, **more: Any) -> None:
        super()._save_checkpoint(*args, **more)
        if self.parts and self._live:
            folder = Path(self._get_output_dir(trial=None)) / f"checkpoint-{self.state.global_step}"
            states = [
                {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in s.items()} for _, s in self._bound
            ]
            save_tree({"parts": states}, folder / "parts")

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not self.parts:
            return
        if not (place := Path(checkpoint) / "parts").is_dir():
            raise Bad(f"{checkpoint} was saved without these parts: their state is not in it")
        for (_, s), old in zip(self._bound, load_tree(place, self.args.device)["parts"], strict=True):
            for k, v in old.items():
                s[k].load_state_dict(v) if isinstance(s.get(k), nn.Module) else s.__setitem__(k, v)


class _Steps(TrainerCallback):
    """What happens around a step."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer: Any = trainer
        self.rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        loop = self.trainer.loop
        loop.t = state.global_step
        self.trainer._effects.look(loop.t, loop.t == loop.steps - 1)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.factor = float(self.trainer._rate())
        groups = self.trainer.optimizer.param_groups
        self.rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] *= self.factor

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        for group, rate in zip(self.trainer.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate  # the schedule goes on from its own

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        loop = self.trainer.loop
        loop.t = state.global_step
        if any(fills(part, "watch") for part in self.trainer.parts):
            bill, loss = self.trainer.run.meter, float(self.trainer._step_loss)
            record = {"t": loop.t, "loss": loss, "rate": self.factor, "lr": self.rates[0] * self.factor}
            self.trainer._watch({**record, "work": bill.work, "tokens": bill.tokens})
        self.trainer._step_loss.zero_()
        if self.trainer._stop():
            control.should_training_stop = True


class _Numbered(torch.utils.data.Dataset):
    """Rows that know their place."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, at: int) -> dict[str, Any]:
        return {**self.rows[at], "row": at}


def _counted(kind: str, batch: dict[str, Any]) -> float:
    """What the mean of a batch divides by: learned tokens of sequences, else rows; `weight` counts."""
    weight = batch.get("weight")
    labels = batch.get("labels")
    if kind in ("causal", "masked", "seq2seq", "tagger") and labels is not None:
        counted = (L.targets(kind, batch) != -100).sum(1)
        return float((counted * weight).sum() if weight is not None else counted.sum())
    return float(weight.sum()) if weight is not None else float(len(batch["row"]))


assert set(HONOURED) | set(REFUSED) == set(SLOTS)
