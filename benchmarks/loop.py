"""The loop against the same training written by hand in plain PyTorch, and against transformers.Trainer, in one run.

The same model, batches, optimizer and precision, whole trainings from their start. Every round runs each of them once, in another order, and a
ratio is of one round; the one by hand runs twice a round: what separates it from itself is the noise.
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


def ours(model: Model, data: Data, steps: int, size: int, precision: str) -> None:
    Run(0).fit(model, data, steps=steps, batch_size=size, lr=1e-4, precision=precision)


def by_hand(model: Model, data: Data, steps: int, size: int, precision: str) -> None:
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


def trainer(model: Model, data: Data, steps: int, size: int, precision: str) -> None:
    """transformers.Trainer on the same rows."""
    from transformers import Trainer, TrainingArguments
    from transformers.trainer_callback import PrinterCallback

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=size, learning_rate=1e-4, bf16=precision == "bf16", use_cpu=True,
            report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0, optim="adamw_torch_fused",
            lr_scheduler_type="constant",
        )  # fmt: skip
        made = Trainer(model.net, args, train_dataset=data.hf().with_format("torch"))
        made.remove_callback(PrinterCallback)
        made.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama-3m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--size", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    data = rows(512, args.length, 4096)
    arms = {"ours": ours, "by hand": by_hand, "transformers.Trainer": trainer, "by hand, again": by_hand}
    times: dict[str, list[float]] = {name: [] for name in arms}
    for round_ in range(-1, args.rounds):
        for at in range(len(arms)):
            name = list(arms)[(at + round_) % len(arms)]
            model, began = preset(args.preset), time.perf_counter()
            arms[name](model, data, args.steps, args.size, args.precision)
            if round_ >= 0:  # the one before warms up
                times[name].append((time.perf_counter() - began) / args.steps)
    for name, took in times.items():
        each = np.array(times["ours"]) / took
        noise = 1.25 * each.std(ddof=1) / len(each) ** 0.5  # of a median
        print(
            f"{name:22s} {statistics.median(took) * 1e3:8.1f} ms a step; ours takes {np.median(each):.3f} of its time (+-{noise:.3f})"
        )


if __name__ == "__main__":
    main()
