"""Scores that need a forward pass against the bare forward over the same batches, in one run.

    python benchmarks/scoring.py                    # llama-3m, rows of 16 to 256 tokens

The batches are made beforehand for the bare side: rows sorted by length, the same rows in each. It is given no mask of the
padding, as ours gives none to a causal network; the bare forward with the mask, as tokenizers give it, is there to compare.
Every round runs each side once, in turn, and a ratio is of one round. `color_filter` runs two models, so its bare side
does. Embeddings need no logits, so `run.embed` stops before the output layer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from trainlore.methods.data.select.color_filter import ColorFilter
from trainlore.methods.measure.evaluate.perplexity import Perplexity
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import TOKENS, Run, passes


def texts(rows: int, vocab: int) -> Data:
    """Rows of random tokens of random lengths."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, vocab, n).astype(np.int32) for n in rng.integers(16, 257, rows)]
    return Data.of({"input_ids": ids, "labels": ids})


def batches(data: Data, model: Model) -> list[dict[str, torch.Tensor]]:
    return [data.batch(rows, model) for rows in passes(data, 64, TOKENS)]


@torch.no_grad()
def bare(models: list[Model], made: list[dict[str, torch.Tensor]], loss: bool, mask: bool = False) -> np.ndarray:
    """A forward of each model over the batches, and the loss by hand if wanted."""
    said = []
    for model in models:
        for batch in made:
            given = {"attention_mask": batch["attention_mask"]} if mask else {}
            out = model.net(input_ids=batch["input_ids"], use_cache=False, **given).logits
            if loss:
                said.append(per_row(rowwise("causal", batch, out), batch, "causal"))
    return torch.cat(said).numpy() if loss else np.zeros(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llama-3m")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, other = (preset(args.preset, seed=s) for s in (0, 1))
    for m in (model, other):
        m.net.eval()
    data = texts(args.rows, model.net.config.vocab_size)
    made = batches(data, model)
    order = np.concatenate([b["row"].numpy() for b in made])
    sides: dict[str, Callable[[], object]] = {
        "bare forward": lambda: bare([model], made, False),
        "bare forward, masked": lambda: bare([model], made, False, mask=True),
        "forward and loss by hand": lambda: bare([model], made, True),
        "perplexity": lambda: Perplexity()(Run(0), model, data),
        "run.embed": lambda: Run(0).embed(model, data),
        "bare forward of two": lambda: bare([model, other], made, False),
        "bare forward of two, masked": lambda: bare([model, other], made, False, mask=True),
        "the two and their losses": lambda: bare([model, other], made, True),
        "color_filter": lambda: ColorFilter(prior=model, conditional=other, keep=0.5)(Run(0), data),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    for round_ in range(-1, args.rounds):
        names = list(sides)
        for name in names[round_ % len(names) :] + names[: round_ % len(names)]:
            start = time.process_time()
            sides[name]()
            if round_ >= 0:  # the one before warms up
                times[name].append(time.process_time() - start)
    scored = ColorFilter(prior=model, conditional=other, keep=1.0)(Run(0), data)["color"]
    first, second = bare([model, other], made, True).astype(np.float64).reshape(2, -1)
    assert np.allclose(scored[order], first - second, atol=1e-5), "the scores differ from those by hand"
    tokens = int(np.diff(data.lists("input_ids")[1]).sum())
    print(f"{args.preset}, {len(data)} rows, {tokens:,} tokens, one thread, {args.rounds} rounds; CPU seconds, medians")
    for name, against in (
        ("bare forward", "bare forward"), ("bare forward, masked", "bare forward"),
        ("forward and loss by hand", "bare forward"),
        ("perplexity", "bare forward"), ("perplexity", "bare forward, masked"), ("perplexity", "forward and loss by hand"),
        ("run.embed", "bare forward"),
        ("color_filter", "bare forward of two"), ("color_filter", "bare forward of two, masked"),
        ("color_filter", "the two and their losses"),
    ):  # fmt: skip
        share = statistics.median(b / a for a, b in zip(times[name], times[against], strict=True))
        print(
            f"  {name:<27} {statistics.median(times[name]) * 1e3:8.0f} ms   {share:6.1%} of the throughput of: {against}"
        )


if __name__ == "__main__":
    main()
