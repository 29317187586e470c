"""Compression against its peers: calibration time and quality, orders and speed-ups promised, packed products, memory.

python benchmarks/compression.py [gptq] [orders] [structured] [product] [memory]      gptq needs `llmcompressor` beside this package
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
        recipe = GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])
        with tempfile.TemporaryDirectory() as folder:
            model.save(Path(folder) / "model")  # it asks for the place a model came from
            other = Model.of(str(Path(folder) / "model"))
            start = time.perf_counter()
            oneshot(
                model=other.net,
                dataset=theirs_rows,
                recipe=recipe,
                num_calibration_samples=rows,
                max_seq_length=128,
                tokenizer=str(Path(folder) / "model"),
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


SHARED = Path(__file__).parents[2] / "shared" / "data"
ORDERS = {  # what a paper promises: the method, and the rival whose held-out loss is no lower
    "gptq": "round to nearest, 3 bits a channel",
    "eora": "the plain decomposition of what 3 bits lost, rank 8",
    "sparsegpt": "half of every layer's weights, by magnitude",
}


def small(corpus: str, steps: int = 300) -> tuple[Model, Data, Data]:
    """A Llama of a million weights after some training on a corpus, rows to calibrate on and rows to judge by.

    corpus: python-docs (the embedded world) or wikitext2 (its validation text to learn from, its test text to judge by).
    """
    if corpus == "python-docs":
        from trainlore import worlds

        seen, unseen = worlds.data("python-docs/pool"), worlds.data("python-docs/held_out")
        seen, unseen = (d.take(np.unique(np.linspace(0, len(d) - 1, n).astype(int))) for d, n in ((seen, 6000), (unseen, 600)))  # fmt: skip
    else:
        parts = (Data.of(str(SHARED / corpus / f"{part}.txt")) for part in ("valid", "test"))
        seen, unseen = (d.where([bool(text.strip()) for text in d.text("text")]) for d in parts)
    run = Run(0)
    model = run.step(load("bpe")(corpus=seen, vocab=2048), preset("llama-1m", window=128))
    learnt, judged = (load("best_fit_packing")(model=model, length=128)(d) for d in (seen, unseen))
    run.fit(model, learnt, load("cosine")(), steps=steps, batch_size=16, lr=3e-3, precision="fp32")
    return model, learnt, judged.take(np.linspace(0, len(judged) - 1, 128).astype(int))


def ordered(name: str, world: tuple[Model, Data, Data], seed: int, arm: str) -> float:
    """Held-out loss of the model compressed by the method called `name`, or by its rival; the seed draws calibration rows."""
    from trainlore.primitives.masks import matrices, weight_of
    from trainlore.primitives.reparam import put_beside

    whole, data, unseen = world
    run, free, mine = Run(seed), {"tolerance": 99.0}, arm == "method"
    if name == "sparsegpt":
        rival = load("magnitude")(keep=0.5, scope="layer", **free)
        made = run.step(load(name)(keep=0.5, rows=32, **free), whole.copy(), data) if mine else run.step(rival, whole.copy())  # fmt: skip
    elif name == "gptq" and mine:
        made = run.step(load(name)(bits=3, rows=32, **free), whole.copy(), data)
    else:
        made = run.step(load("nearest")(bits=3, **free), whole.copy())
    if name == "eora" and mine:
        made = run.step(load(name)(before=whole, rank=8, rows=32), made, data)
    elif name == "eora":
        for path, layer in matrices(made.net).items():
            left, size, right = torch.linalg.svd(weight_of(whole.net.get_submodule(path)) - weight_of(layer), full_matrices=False)  # fmt: skip
            root = size[:8].sqrt()
            put_beside(made.net, path, left[:, :8] * root, root[:, None] * right[:8])
        made = Model(made.net, made.kind, made.tokenizer)
    return loss(made, unseen)


def orders(seeds: int = 5) -> None:
    """The orders of held-out loss that the papers promise, over draws of calibration rows, on two corpora."""
    for corpus in ("python-docs", "wikitext2"):
        if corpus != "python-docs" and not (SHARED / corpus).exists():
            print(f"orders on {corpus}: not beside this repository, left out")
            continue
        world = small(corpus)
        said = loss(world[0], world[2])
        for name, rival in ORDERS.items():
            mine, theirs = ([ordered(name, world, seed, arm) for seed in range(seeds)] for arm in ("method", "rival"))
            gaps = [a - b for a, b in zip(mine, theirs, strict=True)]
            print(
                f"orders on {corpus}, a Llama of {world[0].size / 1e6:.1f} M, loss {said:.3f} whole: {statistics.mean(mine):.3f} by {name}, "
                f"{statistics.mean(theirs):.3f} by its rival ({rival}); differences {min(gaps):+.3f} to {max(gaps):+.3f}, "
                f"{'the order holds' if max(gaps) < 0 else 'THE ORDER DOES NOT HOLD'} ({seeds} draws of calibration rows)"
            )  # fmt: skip


def structured(
    targets: tuple[float, ...] = (1.3, 1.5, 2.0), rounds: int = 15, rows: int = 8, length: int = 256
) -> None:
    """What the table of times that ziplm goes by promises of llama-15m, against passes of the model that is really smaller."""
    from trainlore.primitives.anatomy import bodies
    from trainlore.primitives.shrinking import count, shrink
    from trainlore.primitives.sizing import fit_budget, table

    model = preset("llama-15m", window=length)
    ids = np.random.default_rng(0).integers(3, 4096, (rows, length)).astype(np.int32)
    batch = Data.of({"input_ids": ids, "labels": ids}).batch(range(rows), model)
    whole = [(body.groups, count(model.net, body)) for body in bodies(model)]
    places = [(at, "heads", list(range(groups, -1, -1))) for at, (groups, _) in enumerate(whole)]
    places += [(at, "neurons", [round(n * k / 16) for k in range(16, -1, -1)]) for at, (_, n) in enumerate(whole)]
    times, rest = table(model, places, batch)
    total = rest + sum(float(row[0]) for row in times)
    weight = np.random.default_rng(1).uniform(
        0.5, 1.5, len(places)
    )  # so that blocks differ, as they do when errors are known
    losses = [w * (1 - np.array(sizes) / sizes[0]) ** 2 for w, (_, _, sizes) in zip(weight, places, strict=True)]
    for target in targets:
        chosen = fit_budget(losses, times, total / target - rest)
        predicted = total / (rest + sum(float(row[one]) for row, one in zip(times, chosen, strict=True)))
        kept = [range(sizes[one]) for (_, _, sizes), one in zip(places, chosen, strict=True)]
        small = shrink(model.copy(), kept[: len(whole)], kept[len(whole) :])
        took: dict[str, list[float]] = {"whole": [], "cut": []}
        with torch.no_grad():
            for at in range(rounds + 2):
                for name, one in (("whole", model), ("cut", small)):
                    seconds = _clock(lambda one=one: one(batch))
                    took[name] += [seconds] if at > 1 else []  # the first warm up
        before, after = (statistics.median(seconds) for seconds in took.values())
        gap = predicted * after / before - 1
        print(
            f"structured, {rows} rows of {length} tokens, {target}x asked: {predicted:.2f}x predicted, {before / after:.2f}x measured "
            f"({before * 1e3:.0f} ms, then {after * 1e3:.0f}), {gap:+.1%}{'' if abs(gap) <= 0.15 else ': MORE THAN 15 % APART'}; "
            f"{model.size / 1e6:.1f} M weights, then {small.size / 1e6:.1f} M; {rest / total:.0%} of a pass is what cannot be cut",
            flush=True,
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
        for name in sys.argv[1:] or ["gptq", "orders", "structured", "product", "memory"]:
            {"gptq": gptq, "orders": orders, "structured": structured, "product": product, "memory": memory}[name]()
