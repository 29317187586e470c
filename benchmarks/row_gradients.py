"""Gradients of single rows against a loop over rows: lengths, whole gradients and products with a direction, at batch 64.

    python benchmarks/row_gradients.py              # llama-1m and llama-3m on texts of 64 and 16 tokens, an MLP on digits

One process, one thread. The loop is an ordinary backward for each row, its gradient read and thrown away, or kept where
ours gives it. `bound` is the loop against one ordinary forward and backward of the same batches of 64, which keeps no row
apart: how much a batch uses the machine better than its rows one by one. No way that goes forward and back through the
network is much above it (ours can be a little, because it makes no gradient of the weights), so ours is given as a share of
that, too. Whole gradients have to be written as well, 4 bytes a weight and row, and of short rows that is most of the work:
their bound has the time to fill as much memory in it. On one thread a row of 64 tokens keeps the processor busy and the
bound is low; it is high where rows are small and machines wide. Seconds are those of the CPU, so that a busy machine does
not matter.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.gradients import Losses, row_dots, row_gradients, row_norms
from trainlore.runs import Run
from trainlore.worlds import data as rows_of


def seconds(function: Callable[[], object], times: int) -> float:
    """CPU seconds of the fastest of so many runs, of more where they are short; the first does not count."""
    function()
    found: list[float] = []
    while len(found) < times or sum(found) < 0.2:
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


def plain(model: Model, data: Data) -> None:
    """An ordinary forward and backward of each batch of 64: the gradient of the sum of its losses."""
    weights, losses = list(model.net.parameters()), Losses(model)
    for at in range(0, len(data), 64):
        batch = data.batch(range(at, min(at + 64, len(data))), model)
        batch.pop("attention_mask", None)
        torch.autograd.grad(losses(batch).sum(), weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="in batches of 64")
    parser.add_argument("--tokens", type=int, nargs="*", default=[64, 16], help="tokens of a text")
    parser.add_argument("--networks", nargs="*", default=["mlp", "llama-1m", "llama-3m"])
    parser.add_argument("--times", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for name in args.networks:
        model = preset(name, seed=0)
        if name == "mlp":
            compare("mlp on digits", model, rows_of("digits/train").take(range(args.rows)), args.times)
            continue
        for tokens in args.tokens:
            rng = Run(0).rng("text")
            ids = torch.randint(3, model.net.config.vocab_size, (args.rows, tokens), generator=rng)
            texts = Data.of({"input_ids": ids.tolist(), "labels": ids.tolist()})
            compare(f"{name}, {tokens} tokens", model, texts, args.times)


def compare(name: str, model: Model, data: Data, times: int) -> None:
    """Print how many times faster than the loop each of ours is, and how fast anything could be."""
    model.net.eval()
    direction = torch.ones(model.size)
    few = data.take(
        range(min(len(data), max(64, 2**26 // model.size // 64 * 64)))
    )  # 256 MiB of whole gradients, or 64 rows
    slow, kept = seconds(lambda: loop(model, data), 2), seconds(lambda: loop(model, few, keep=True), 2)
    batches, fewer = seconds(lambda: plain(model, data), times), seconds(lambda: plain(model, few), times)
    written = seconds(lambda: np.full((len(few), model.size), 1, np.float32), times)
    print(
        f"{name}: {model.size:,} weights; a loop over {len(data)} rows {slow * 1e3:,.0f} ms, "
        f"ordinary batches {batches * 1e3:,.0f} ms: bound {slow / batches:.1f} x"
    )
    for what, against, bound, ours in (
        ("GraNd (row_norms)", slow, batches, lambda: row_norms(Run(0), model, data)),
        ("influence (row_dots)", slow, batches, lambda: row_dots(Run(0), model, data, direction)),
        (f"row_gradients of {len(few)} rows", kept, fewer + written, lambda: row_gradients(Run(0), model, few)),
    ):
        fast = seconds(ours, times)
        print(
            f"  {what:<28} {fast * 1e3:>8,.1f} ms   ratio {against / fast:5.1f} x of {against / bound:5.1f} x possible, "
            f"{bound / fast:4.0%}"
        )
    true = loop(model, data)
    off = float((row_norms(Run(0), model, data) / true - 1).abs().max())
    whole = loop(model, few, keep=True)
    apart = float((row_gradients(Run(0), model, few) - whole).norm() / whole.norm())
    along = row_dots(Run(0), model, few, direction) - whole @ direction
    print(
        f"  largest relative difference of a length {off:.1e}, of all gradients {apart:.1e}; of a product, as a share of "
        f"both lengths, {float((along.abs() / (true[: len(few)] * direction.norm())).max()):.1e}"
    )
    assert off < 1e-3 and apart < 1e-3, "ours is not what the loop gives"


if __name__ == "__main__":
    main()
