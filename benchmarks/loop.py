"""The loop against the same training written by hand in plain PyTorch, and against transformers.Trainer, in one run.

The same model, batches, optimizer and precision. The trainings stand side by side and take single steps in turn, so that a
machine that is busy for a second is busy for all. The one by hand runs twice: what separates it from itself is the noise. What a
training does once before its first steps is told apart, from trainings run whole.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run


def rows(n: int, length: int, vocab: int) -> Data:
    """Packed rows of random tokens."""
    ids = np.random.default_rng(0).integers(3, vocab, (n, length)).astype(np.int32)
    return Data.of({"input_ids": ids, "labels": ids})


class Turns:
    """Lets several trainings, a thread each, take steps in turn, and keeps what each step took."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.running, self.took = names, names[0], {n: [] for n in names}
        self.began, self.changed = time.perf_counter(), threading.Condition()

    def wait(self, name: str) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.running == name)
            self.began = time.perf_counter()

    def stepped(self, name: str, last: bool = False) -> None:
        self.took[name].append(time.perf_counter() - self.began)
        with self.changed:
            self.running = self.names[(self.names.index(name) + 1) % len(self.names)]
            self.changed.notify_all()
        if not last:
            self.wait(name)


def ours(model: Model, data: Data, steps: int, size: int, precision: str, stepped: Callable) -> None:
    class Paced(Run):
        def log(self, record: dict[str, Any], often: bool = True) -> None:
            super().log(record, often=often)
            stepped()

    Paced(0).fit(model, data, steps=steps, batch_size=size, lr=1e-4, precision=precision)


def by_hand(model: Model, data: Data, steps: int, size: int, precision: str, stepped: Callable) -> None:
    """What nanoGPT's loop does, on the same batches."""
    tokens = torch.from_numpy(data["input_ids"].astype(np.int64))
    net = model.net.train()
    adam = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for t in range(steps):
        x = tokens[[(t * size + i) % len(tokens) for i in range(size)]]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(input_ids=x, attention_mask=torch.ones_like(x), use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), x[:, 1:].flatten())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        loss.item()
        stepped()


def trainer(model: Model, data: Data, steps: int, size: int, precision: str, stepped: Callable) -> None:
    """transformers.Trainer on the same rows."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Paced(TrainerCallback):
        def on_step_end(self, *args: object, **kwargs: object) -> None:
            stepped()

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=size, learning_rate=1e-4, bf16=precision == "bf16", use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0, optim="adamw_torch_fused",
            lr_scheduler_type="constant",
        )  # fmt: skip
        made = Trainer(model.net, args, train_dataset=data.hf().with_format("torch"), callbacks=[Paced()])
        made.remove_callback(PrinterCallback)
        made.train()


def in_turn(arms: dict[str, Callable], steps: int, how: Callable[[str, Callable], None]) -> dict[str, list[float]]:
    """Seconds of each step of each arm; the first two, in which memory is still being found, left out."""
    turns = Turns(list(arms))

    def alone(name: str) -> None:
        turns.wait(name)
        how(name, lambda: turns.stepped(name, last=len(turns.took[name]) == steps - 1))

    threads = [threading.Thread(target=alone, args=(name,)) for name in arms]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {name: took[2:] for name, took in turns.took.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama-3m")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    data = rows(512, args.length, 4096)
    arms = {"ours": ours, "by hand": by_hand, "transformers.Trainer": trainer, "by hand, again": by_hand}
    whole: dict[str, list[float]] = {name: [] for name in arms}

    def train(name: str, stepped: Callable, steps: int = args.steps) -> None:
        arms[name](preset(args.preset), data, steps, args.size, args.precision, stepped)

    for name in arms:
        train(name, lambda: None, steps=2)  # warm up
    for round_ in range(args.rounds):
        for name in list(arms)[round_ % 4 :] + list(arms)[: round_ % 4]:
            began = time.perf_counter()
            train(name, lambda: None)
            whole[name].append(time.perf_counter() - began)
    times = in_turn(arms, args.rounds * args.steps, lambda name, stepped: train(name, stepped, args.rounds * args.steps))
    total = statistics.median(whole["ours"])
    for name, took in times.items():
        each = [a / b for a, b in zip(times["ours"], took, strict=True)]
        other = statistics.median(whole[name])
        print(
            f"{name:22s} {statistics.median(took) * 1e3:8.1f} ms a step; ours takes {statistics.median(each):.3f} of its time"
            f" (median of {len(each)} pairs, +-{1.25 * np.std(each) / len(each) ** 0.5:.3f});"
            f" {other:.2f} s for {args.steps} steps from nothing, {total / other:.3f} of its time"
        )


if __name__ == "__main__":
    main()
