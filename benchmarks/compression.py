"""Compression against its peers: calibration time and quality, packed products, and the memory of a large model.

python benchmarks/compression.py [gptq] [product] [memory]      gptq needs `llmcompressor` beside this package
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.registry import load
from trainlore.runs import Run


def grown() -> tuple[Model, Data, Data]:
    """llama-15m after some training on real docstrings, calibration rows and rows to judge by."""
    from trainlore import worlds

    pool, unseen = worlds.data("python-docs/pool"), worlds.data("python-docs/held_out")
    run = Run(0)
    model = run.step(load("bpe")(corpus=pool.take(range(4000)), vocab=4096), preset("llama-15m", window=256))
    packed = load("best_fit_packing")(model=model, length=128)(pool.take(range(6000)))
    run.fit(model, packed, steps=120, batch_size=8, lr=1e-3, precision="fp32")
    judged = load("best_fit_packing")(model=model, length=128)(unseen.take(range(400)))
    return model, packed, judged.take(range(min(128, len(judged))))


def loss(model: Model, data: Data) -> float:
    from trainlore.primitives import losses as L

    rows = Run(0).infer(model, data, lambda b, out: L.per_row(L.rowwise(model.kind, b, out), b, model.kind))
    return float(rows.mean())


def gptq(rounds: int = 2, rows: int = 64) -> None:
    """GPTQ of 4 bits in groups of 128 against llmcompressor's, the same calibration rows: seconds and loss on unseen rows."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    model, data, unseen = grown()
    calibration = data.take(range(rows))
    ids = [r.tolist() for r in calibration["input_ids"]] if isinstance(calibration["input_ids"], np.ndarray) else calibration["input_ids"].to_pylist()  # fmt: skip
    theirs_rows = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(r) for r in ids]})
    method = load("gptq")(bits=4, per=128, symmetric=True, rows=rows, tolerance=9.0)
    mine_s, theirs_s, found = [], [], {}
    for _ in range(rounds):
        start = time.perf_counter()
        made = method(model.copy(), calibration)
        mine_s.append(time.perf_counter() - start)
        other = model.copy()
        start = time.perf_counter()
        recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
        with tempfile.TemporaryDirectory():
            oneshot(
                model=other.net,
                dataset=theirs_rows,
                recipe=recipe,
                num_calibration_samples=rows,
                max_seq_length=128,
                tokenizer=model.tokenizer,
            )
        theirs_s.append(time.perf_counter() - start)
        found = {
            "whole": loss(model, unseen),
            "ours": loss(made, unseen),
            "llmcompressor": loss(Model(other.net, "causal", model.tokenizer), unseen),
        }
    nearest = load("nearest")(bits=4, per=128, symmetric=True, tolerance=9.0)(model.copy())
    print(
        f"gptq of llama-15m, 4 bits in groups of 128, {rows} rows of 128 tokens: {statistics.median(mine_s):.1f} s against llmcompressor's {statistics.median(theirs_s):.1f} s "
        f"({statistics.median(t / m for t, m in zip(theirs_s, mine_s, strict=True)):.2f} times its speed); loss {found['whole']:.4f} whole, {found['ours']:.4f} ours, "
        f"{found['llmcompressor']:.4f} llmcompressor, {loss(nearest, unseen):.4f} nearest"
    )  # fmt: skip


def product(out: int = 4096, wide: int = 4096, group: int = 32) -> None:
    """torch's packed int4 product on the processor against dequantizing first and against the whole weight."""
    from trainlore.primitives.grids import Grid

    torch.set_num_threads(2)
    weight = torch.randn(out, wide)
    grid = Grid.of(weight, "uint4", group)
    codes = grid.codes(weight)
    scale, zero = grid.scale.view(out, -1), grid.zero.view(out, -1).float()
    scales = torch.stack([scale, scale * (8 - zero)], -1).transpose(0, 1).contiguous()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
    for rows in (1, 16, 128):
        x = torch.randn(rows, wide)
        want = x @ grid.round(weight).T
        ways = {
            "packed": lambda x=x: torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, group, scales),
            "dequantized first": lambda x=x: x @ grid.back(codes).T,
            "whole": lambda x=x: x @ weight.T,
        }
        gap = float((ways["packed"]() - want).norm() / want.norm())
        took = {name: statistics.median(_clock(way) for _ in range(7)) * 1e3 for name, way in ways.items()}
        print(f"int4 product, {rows} rows x {wide} -> {out}: " + ", ".join(f"{n} {t:.2f} ms" for n, t in took.items()) + f" (distance {gap:.0e})")  # fmt: skip


def _clock(way) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def memory() -> None:
    """Peak memory of calibrating a model of 1 B weights from disk, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for what in ("make", "wanda"):
            done = subprocess.run([sys.executable, __file__, f"--{what}", folder], capture_output=True, text=True)
            print(done.stdout.strip() or done.stderr[-800:])


def _make(folder: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=18, num_attention_heads=16, tie_word_embeddings=True,
        max_position_embeddings=256, torch_dtype="bfloat16",
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16)
    net = transformers.LlamaForCausalLM(config)
    net.save_pretrained(folder, max_shard_size="400MB")
    print(f"a Llama of {sum(p.numel() for p in net.parameters()) / 1e9:.2f} B weights in bfloat16")


def _wanda(folder: Path) -> None:
    model = Model.of(str(folder))
    ids = np.random.default_rng(0).integers(0, 32000, (16, 128)).astype(np.int32)
    start = time.perf_counter()
    load("wanda")(keep=0.5, rows=16, size=4, tolerance=9.0)(model, Data.of({"input_ids": ids, "labels": ids}))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)
    print(f"wanda on it, 16 rows of 128 tokens, from disk: {time.perf_counter() - start:.0f} s, peak {peak:.2f} GiB (at most 6)")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        _make(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["--wanda"]:
        _wanda(Path(sys.argv[2]))
    else:
        for name in sys.argv[1:] or ["gptq", "product", "memory"]:
            {"gptq": gptq, "product": product, "memory": memory}[name]()
