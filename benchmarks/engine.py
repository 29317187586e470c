"""The engine's promises: a sampler whose cost does not grow, checkpoints that do not stall, packing and training against trl.

python benchmarks/engine.py [sampler] [checkpoints] [mfu] [packing] [sft]      the last two need `trl` (pip install trl), mfu a GPU
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from trainlore.checkpoints import Checkpoints
from trainlore.memory import keep_freed
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.sampling import Sampler
from trainlore.registry import load
from trainlore.runs import Run


def sampler(steps: int = 300, size: int = 32) -> None:
    """Microseconds a step at 10 thousand, 1 and 10 million rows, shuffled and by odds, after the first step."""
    for how in ("shuffled", "by odds"):
        said = []
        for rows in (10_000, 1_000_000, 10_000_000):
            made = Sampler(rows, lambda *key: torch.Generator().manual_seed(hash(key) % 2**31))
            odds = torch.rand(rows, dtype=torch.float64) if how == "by odds" else None
            made.draw(0, size, odds)
            start = time.perf_counter()
            for t in range(1, steps):
                made.draw(t, size, odds)
            said.append((time.perf_counter() - start) / (steps - 1) * 1e6)
        print(f"sampler, {how}: {said[0]:.0f} us a step of {size} rows at 10 k rows, {said[1]:.0f} at 1 M, {said[2]:.0f} at 10 M")  # fmt: skip


def tokens(rows: int, length: int, vocab: int = 4096) -> Data:
    ids = np.random.default_rng(0).integers(3, vocab, (rows, length)).astype(np.int32)
    return Data.of({"input_ids": ids, "labels": ids})


def checkpoints(saves: int = 8, apart: int = 20) -> None:
    """What one save costs a training of llama-15m: the ten steps after it against the ten before, saves far apart."""
    data, model, run = tokens(400, 64), preset("llama-15m", window=64), Run(0)
    plain, ends = run.checkpoints, []

    class Watched:
        """The training's own saver, which every so often is told that a save is due."""

        def __init__(self, saver: Checkpoints) -> None:
            self.saver = saver

        def __getattr__(self, name: str):
            return getattr(self.saver, name)

        def due(self) -> bool:
            ends.append(time.perf_counter())
            return len(ends) % apart == apart // 2

    @contextmanager
    def watched(*args, **more):
        with plain(*args, **more) as saver:
            yield Watched(saver)

    run.checkpoints = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder:
        run.fit(model, data, steps=apart * saves + 1, batch_size=4, precision="fp32", folder=Path(folder))
    took = np.diff(ends)  # the save of step k lies between the ends of the steps k and k + 1
    at = np.arange(saves) * apart + apart // 2 - 1
    stalls = [took[k : k + 10].sum() - 10 * np.median(took[k - 9 : k]) for k in at]
    step = float(np.median(took))
    low, middle, high = np.quantile(stalls, [0.25, 0.5, 0.75])
    print(f"checkpoints: an asynchronous save of llama-15m ({saves} saves, steps of {step:.2f} s) stalls the training for {middle:.2f} s (quartiles {low:.2f}, {high:.2f}): {middle / step:.1f} % of 100 steps (at most 5 %)")  # fmt: skip


def documents(n: int, seed: int = 0) -> list[list[int]]:
    """Documents with the lengths of prose: log-normal, a few far beyond a window."""
    g = np.random.default_rng(seed)
    return [list(range(3, 3 + int(length))) for length in np.clip(g.lognormal(5.2, 1.0, n), 8, 6000)]


def packer(n: int = 40_000, window: int = 1024) -> None:
    """Rows a second and fill of best-fit packing against trl's bfd_split, no token lost by either."""
    import pyarrow as pa
    from datasets import Dataset
    from trl.data_utils import pack_dataset

    texts = documents(n)
    total = sum(map(len, texts))
    data = Data.of(
        {"input_ids": pa.array(texts, pa.large_list(pa.int32())), "labels": pa.array(texts, pa.large_list(pa.int32()))}
    )
    theirs = Dataset.from_dict({"input_ids": texts})
    ours_s, theirs_s, pack = [], [], load("best_fit_packing")(length=window)
    for _ in range(3):
        start = time.perf_counter()
        made = pack(data)
        ours_s.append(time.perf_counter() - start)
        start = time.perf_counter()
        packed = pack_dataset(theirs, window, strategy="bfd_split")
        theirs_s.append(time.perf_counter() - start)
    kept = sum(len(r) for r in packed["input_ids"])
    mine = int((made["segment_ids"] >= 0).sum())
    print(
        f"packing {n:,} documents into {window}: {n / statistics.median(ours_s):,.0f} rows a second, fill {mine / (len(made) * window):.4f}, {mine - total:+d} tokens; "
        f"trl bfd_split {n / statistics.median(theirs_s):,.0f}, fill {kept / (len(packed) * window):.4f}, {kept - total:+d} tokens: {statistics.median(theirs_s) / statistics.median(ours_s):.2f} times its speed"
    )  # fmt: skip


def sft(steps: int = 30, rounds: int = 3, window: int = 256) -> None:
    """Tokens a second of llama-15m on packed rows against trl's SFTTrainer on the same documents, packed by itself."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    texts = [t[: window - 8] for t in documents(2000)]
    data = Data.of({"input_ids": texts, "labels": texts})
    took: dict[str, list[float]] = {"ours": [], "trl": []}
    start = preset("llama-15m", window=window)
    packed = load("best_fit_packing")(length=window)(data)
    for _ in range(rounds):
        model = start.copy()
        begin = time.perf_counter()
        Run(0).fit(model, packed, steps=steps, batch_size=4, precision="fp32", lr=1e-4)
        took["ours"].append(time.perf_counter() - begin)
        with tempfile.TemporaryDirectory() as folder:
            args = SFTConfig(
                folder, max_steps=steps, per_device_train_batch_size=4, packing=True, max_length=window, packing_strategy="bfd",
                use_cpu=True, bf16=False, report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True, max_grad_norm=0.0,
                learning_rate=1e-4, gradient_checkpointing=False, padding_free=False, dataset_kwargs={"skip_prepare_dataset": False},
            )  # fmt: skip
            net = start.copy().net
            made = SFTTrainer(
                net, args, train_dataset=Dataset.from_dict({"input_ids": texts}), processing_class=_words()
            )
            begin = time.perf_counter()
            made.train()
            took["trl"].append(time.perf_counter() - begin)
    ratio = statistics.median(b / a for a, b in zip(took["ours"], took["trl"], strict=True))
    print(f"llama-15m, {steps} steps of 4 packed rows of {window}: {steps * 4 * window / statistics.median(took['ours']):,.0f} tokens a second, trl's SFTTrainer {steps * 4 * window / statistics.median(took['trl']):,.0f}: {ratio:.2f} (at least 1.0)")  # fmt: skip


PEAK = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # dense bfloat16, as the makers say


def mfu(
    steps: int = 60, rows: int = 16, window: int = 1024, model: str = "llama-120m", compile: str = "inductor"
) -> None:
    """Share of the accelerator's bfloat16 peak that a training of packed rows uses, its first third left out."""
    if not torch.cuda.is_available():
        print("mfu: no CUDA device here")
        return
    name = torch.cuda.get_device_name()
    run, ends = Run(0), []
    plain = run.log
    run.log = lambda record, **how: (ends.append((time.perf_counter(), record["work"])), plain(record, **how))  # type: ignore[method-assign]
    run.fit(
        preset(model, window=window),
        tokens(rows * 8, window),
        steps=steps,
        batch_size=rows,
        precision="bf16",
        compile=compile,
        lr=1e-4,
    )
    (begin, before), (end, after) = ends[steps // 3], ends[-1]
    speed = (after - before) / (end - begin)
    peak = next((v for k, v in PEAK.items() if k in name), None)
    share = f"{100 * speed / peak:.1f} % of its peak of {peak / 1e12:.0f}" if peak else "its peak is not known here"
    print(f"mfu: {model}, {rows} rows of {window} tokens a step, bf16, {compile}, on {name}: {(len(ends) - 1 - steps // 3) * rows * window / (end - begin):,.0f} tokens a second, {speed / 1e12:.1f} TFLOP/s, {share}; {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")  # fmt: skip


def _words():
    from trainlore.worlds.tiny import world

    return world("text")["teacher"].tokenizer


if __name__ == "__main__":
    torch.set_num_threads(2)
    keep_freed()  # as the command line does; both sides have it
    asked = sys.argv[1:] or ["sampler", "checkpoints", "mfu", "packing", "sft"]
    for name in asked:
        {"sampler": sampler, "checkpoints": checkpoints, "mfu": mfu, "packing": packer, "sft": sft}[name]()
