"""Gradients of single rows against a loop over rows: lengths, whole gradients and products with a direction, at batch 64.

    python benchmarks/row_gradients.py              # llama-1m and llama-3m on texts of 64 and 16 tokens, an MLP on digits

One process, one thread. The loop is an ordinary backward for each row, its gradient read and thrown
away, or kept where ours gives it. On one thread a row of 64 tokens keeps the processor busy, and the loop is at most
half more work than ours: the ratio is what small rows and wide machines make of it. Seconds are
those of the CPU, so that a busy machine does not matter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch

from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.gradients import Losses, row_dots, row_gradients, row_norms
from trainlore.runs import Run
from trainlore.worlds import data as rows_of


def seconds(function: Callable[[], object], times: int) -> float:
    """CPU seconds of the fastest of some runs, the first of which does not count."""
    function()
    found = []
    for _ in range(times):
        start = time.process_time()
        function()
        found.append(time.process_time() - start)
    return min(found)


def loop(model: Model, data: Data, keep: bool = False) -> torch.Tensor:
    """The length of each row's gradient, or the gradient itself, a row after the other."""
    weights, losses = list(model.net.parameters()), Losses(model)
    found = []
    for i in range(len(data)):
        slopes = torch.autograd.grad(losses(data.batch([i], model)).sum(), weights)
        if keep:
            found.append(torch.cat([g.flatten() for g in slopes]))
        else:
            found.append(torch.stack([g.square().sum() for g in slopes]).sum().sqrt())
    return torch.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="in batches of 64")
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 16], help="tokens of a text")
    parser.add_argument("--times", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in ("llama-1m", "llama-3m"):
        llama = preset(name, seed=0)
        for tokens in args.tokens:
            rng = Run(0).rng("text")
            ids = torch.randint(3, llama.net.config.vocab_size, (args.rows, tokens), generator=rng)
            texts = Data.of({"input_ids": ids.tolist(), "labels": ids.tolist()})
            compare(f"{name}, {tokens} tokens", llama, texts, args.times)
    compare("mlp", preset("mlp", seed=0), rows_of("digits/train").take(range(args.rows)), args.times)


def compare(name: str, model: Model, data: Data, times: int) -> None:
    """Print how many times faster than the loop each of ours is."""
    model.net.eval()
    direction = torch.ones(model.size)
    few = data.take(range(64))
    slow, kept = seconds(lambda: loop(model, data), 1), seconds(lambda: loop(model, few, keep=True), 1)
    print(f"{name}: {model.size:,} weights; a loop over {len(data)} rows {slow * 1e3:,.0f} ms")
    for what, against, ours in (
        ("GraNd (row_norms)", slow, lambda: row_norms(Run(0), model, data)),
        ("influence (row_dots)", slow, lambda: row_dots(Run(0), model, data, direction)),
        ("row_gradients of 64 rows", kept, lambda: row_gradients(Run(0), model, few)),
    ):
        fast = seconds(ours, times)
        print(f"  {what:<25} {fast * 1e3:>8,.1f} ms   ratio {against / fast:.1f} x")
    off = float((row_norms(Run(0), model, data) / loop(model, data) - 1).abs().max())
    print(f"  largest relative difference of a length: {off:.1e}")


if __name__ == "__main__":
    main()
