"""The engine's promises: a sampler whose cost does not grow, checkpoints that do not stall, packing and training against trl.

python benchmarks/engine.py [sampler] [checkpoints] [packing] [sft]      the last two need `trl` (pip install trl)
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from trainlore import runs
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


def checkpoints(steps: int = 100, rounds: int = 3) -> None:
    """What one save costs a training of 100 steps of llama-15m: its share of the time, medians of whole trainings."""
    data, start = tokens(400, 64), preset("llama-15m", window=64)
    took: dict[str, list[float]] = {"without": [], "one save": []}
    for _ in range(rounds):
        for name in took:
            with tempfile.TemporaryDirectory() as folder:
                runs.EVERY = 1e9
                model, run = start.copy(), Run(0)
                begin = time.perf_counter()
                half = {"folder": Path(folder)} if name == "one save" else {}
                if half:  # due once, in the middle
                    import threading

                    threading.Timer(0.4 * (statistics.median(took["without"] or [20.0])), _due, (run,)).start()
                    run.checkpoints = _watched(run)  # type: ignore[method-assign]
                run.fit(model, data, steps=steps, batch_size=4, precision="fp32", **half)
                took[name].append(time.perf_counter() - begin)
    ratio = statistics.median(b / a for a, b in zip(took["without"], took["one save"], strict=True))
    print(f"checkpoints: one asynchronous save in {steps} steps of llama-15m costs {100 * (ratio - 1):+.1f} % ({statistics.median(took['without']):.1f} s without; at most 5 %)")  # fmt: skip


_SAVERS: dict[int, object] = {}


def _watched(run: Run):
    plain = run.checkpoints

    def made(*args, **more):
        _SAVERS[id(run)] = saver = plain(*args, **more)
        return saver

    return made


def _due(run: Run) -> None:
    if (saver := _SAVERS.get(id(run))) is not None:
        saver.saved = -1e12  # type: ignore[attr-defined]


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


def _words():
    from trainlore.worlds.tiny import world

    return world("text")["teacher"].tokenizer


if __name__ == "__main__":
    torch.set_num_threads(2)
    keep_freed()  # as the command line does; both sides have it
    asked = sys.argv[1:] or ["sampler", "checkpoints", "packing", "sft"]
    for name in asked:
        {"sampler": sampler, "checkpoints": checkpoints, "packing": packer, "sft": sft}[name]()
