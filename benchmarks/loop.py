"""The loop against the same training written by hand in plain PyTorch, and against transformers.Trainer, in one run.

The same model, batches, optimizer and precision; blocks of steps are taken in turn, so that a busy machine slows all alike.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

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


def ours(model: Model, data: Data, steps: int, size: int, precision: str) -> float:
    start = time.perf_counter()
    Run(0).fit(model, data, steps=steps, batch_size=size, lr=1e-4, precision=precision)
    return (time.perf_counter() - start) / steps


def by_hand(model: Model, data: Data, steps: int, size: int, precision: str) -> float:
    """What nanoGPT's loop does, on the same batches."""
    tokens = torch.from_numpy(data["input_ids"].astype(np.int64))
    net = model.net.train()
    adam = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    start = time.perf_counter()
    for t in range(steps):
        x = tokens[[(t * size + i) % len(tokens) for i in range(size)]]
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            logits = net(input_ids=x, attention_mask=torch.ones_like(x), use_cache=False).logits
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), x[:, 1:].flatten())
        adam.zero_grad(set_to_none=True)
        loss.backward()
        adam.step()
        loss.item()
    return (time.perf_counter() - start) / steps


def trainer(model: Model, data: Data, steps: int, size: int, precision: str) -> float:
    """transformers.Trainer on the same rows."""
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    class Clock(TrainerCallback):
        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            self.start = time.perf_counter()

        def on_train_end(self, *args: object, **kwargs: object) -> None:
            self.seconds = time.perf_counter() - self.start

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=size, learning_rate=1e-4, bf16=precision == "bf16", use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0, optim="adamw_torch_fused",
            lr_scheduler_type="constant",
        )  # fmt: skip
        made = Trainer(model.net, args, train_dataset=data.hf().with_format("torch"), callbacks=[clock])
        made.remove_callback(PrinterCallback)
        made.train()
    return clock.seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama-3m")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    data = rows(512, args.length, 4096)
    arms = {"ours": ours, "by hand": by_hand, "transformers.Trainer": trainer}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():
        arm(preset(args.preset), data, 2, args.size, args.precision)  # warm up
    for round_ in range(args.rounds):
        for name in list(arms)[round_ % 3 :] + list(arms)[: round_ % 3]:
            times[name].append(arms[name](preset(args.preset), data, args.steps, args.size, args.precision))
    mine = statistics.median(times["ours"])
    for name, found in times.items():
        middle = statistics.median(found)
        print(
            f"{name:22s} {middle * 1e3:8.1f} ms a step (best {min(found) * 1e3:.1f}); ours takes {mine / middle:.3f} of its time"
        )


if __name__ == "__main__":
    main()
