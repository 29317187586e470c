"""Scoring passes on Ray over data larger than memory: the same rows and scores as locally, and how much memory it took.

    python benchmarks/ray_data.py
    python benchmarks/ray_data.py --size 256        # MiB of text, and as much again of embeddings

Two sides in processes of their own read the same memory-mapped files. One runs here, without a limit. The other runs on a
Ray of two workers with an object store of --store MiB, and none of its processes may have more than --room MiB of memory
of its own beside what the libraries take: less than the rows, so none could hold them all. Whichever takes more is
killed with all the others, and the run has failed. DSIR and near-duplicate removal read the text; a network scores and
embeds the vectors. What the store cannot hold, Ray moves to disk.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

MIB = 2**20
WIDE, WORDS = 384, (150, 450)


def write(size: int, folder: Path) -> None:
    """About `size` MiB of text, and of embeddings, each in a file."""
    rng = np.random.default_rng(0)
    vocabulary = np.array([f"w{i:x}" for i in range(50_000)])
    with pa.ipc.new_file(str(folder / "text.arrow"), pa.schema([("text", pa.large_string())])) as out:
        wrote = 0
        while wrote < size * MIB:
            length = rng.integers(*WORDS, 4096)
            words = vocabulary[np.minimum(rng.zipf(1.2, length.sum()) - 1, 49_999)]
            said = [" ".join(part.tolist()) for part in np.split(words, np.cumsum(length)[:-1])]
            said[20::40] = [s + " w0" for s in said[:-20:40]]  # near copies
            out.write_batch(pa.record_batch([pa.array(said, pa.large_string())], ["text"]))
            wrote += sum(map(len, said))
    schema = pa.schema([("features", pa.list_(pa.float32(), WIDE))])
    with pa.ipc.new_file(str(folder / "vectors.arrow"), schema) as out:
        for _ in range(-(-size * MIB // (4096 * WIDE * 4))):
            x = rng.standard_normal(4096 * WIDE, np.float32)
            out.write_batch(pa.record_batch([pa.FixedSizeListArray.from_arrays(pa.array(x), WIDE)], schema=schema))


def own(pid: int | str = "self") -> int:
    """Bytes of memory that a process has for itself now: neither pages of files nor of the object store."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def largest(batch: dict[str, Any], out: Any) -> Any:
    return out.float().amax(1)


def side(on: str, folder: Path, store: int) -> None:
    """In a process of its own: all passes, their answers in a file, their seconds as JSON."""
    import torch

    from trainlore.methods.data.clean.near_duplicates import NearDuplicates
    from trainlore.methods.data.select.dsir import DSIR
    from trainlore.nouns import Data, Model
    from trainlore.runs import BLOCK, Run

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(WIDE, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
    model, run = Model(net, "classifier"), Run(0, on=on)
    text, vectors = (
        Data(pa.ipc.open_file(pa.memory_map(str(folder / f"{kind}.arrow"))).read_all()) for kind in ("text", "vectors")
    )
    target = Data(text.take(range(500)).arrow())
    if on == "ray":
        import ray
        import ray.data

        how = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}
        ray.init(num_cpus=2, object_store_memory=store * MIB, **how)
        run.infer(model, vectors.take(range(BLOCK + 1)), largest)  # so that all of Ray is there before it is counted
        (folder / "libraries").write_text(str(own()))
    found, seconds = {}, {}
    for name in ("dsir", "near_duplicates", "scores", "embeddings"):
        start = time.perf_counter()
        if name == "dsir":
            kept = DSIR(target=target, keep=0.1, min_words=0)(run, text)
            found |= {"dsir": kept["dsir"], "dsir_ids": kept.ids}
        elif name == "near_duplicates":
            found["near_duplicates"] = NearDuplicates()(run, text).ids
        elif name == "scores":
            found["scores"] = run.infer(model, vectors, largest).numpy()
        else:
            found["embeddings"] = run.embed(model, vectors).numpy()[:, :8]
        seconds[name] = time.perf_counter() - start
    np.savez(folder / f"{on}.npz", **found)
    print(json.dumps({"seconds": seconds, "rows": [len(text), len(vectors)], "bytes": text.table.nbytes}))


def watched(on: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One side with the peaks of its processes, by what they are: bytes of their own, and of the store."""
    import psutil

    command = [sys.executable, __file__, "--side", on, "--folder", str(folder)]
    command += ["--store", str(args.store)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_DEDUP_LOGS": "0"}
    peaks: dict[str, int] = {}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as wrong:
        process = subprocess.Popen(command, stdout=out, stderr=wrong, env=env)
        me, libraries = psutil.Process(process.pid), folder / "libraries"
        while process.poll() is None:
            most = int(libraries.read_text() or 0) + args.room * MIB if on == "ray" and libraries.exists() else 0
            for one in (others := [me, *_below(me)]):
                name, took = _seen(one, one is me, peaks)
                if args.room * MIB < most < took:
                    for other in others[::-1]:
                        _ended(other)
                    raise SystemExit(f"{name} took {took / MIB:.0f} MiB of the {most / MIB:.0f} it may have")
            time.sleep(0.05)
        out.seek(0), wrong.seek(0)
        if process.returncode:
            raise SystemExit(f"{on} failed:\n{wrong.read()[-3000:]}")
        told = {"libraries": int(libraries.read_text()) if on == "ray" else 0, "peaks": peaks}
        return {**json.loads(out.read().splitlines()[-1]), **told}


def _below(me: Any) -> list[Any]:
    import psutil

    try:
        return list(me.children(recursive=True))
    except psutil.Error:
        return []


def _ended(process: Any) -> None:
    import psutil

    with contextlib.suppress(psutil.Error):
        process.kill()


def _seen(process: Any, begins: bool, peaks: dict[str, int]) -> tuple[str, int]:
    """What kind of process it is, and the bytes it has of its own now; the most of its kind goes into the peaks."""
    import psutil

    try:
        name = "a worker" if process.name().startswith("ray::") else "a process of Ray's"
        name, now = "the process that asks" if begins else name, own(process.pid)
    except (psutil.Error, OSError):
        return "", 0
    peaks[name] = max(peaks.get(name, 0), now)
    return name, now


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="MiB of text, and of embeddings")
    parser.add_argument("--store", type=int, default=100, help="MiB of the object store")
    parser.add_argument("--room", type=int, default=512, help="MiB a process may have beside its libraries")
    parser.add_argument("--side", choices=("local", "ray"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        side(args.side, args.folder, args.store)
        return 0
    try:
        import ray  # noqa: F401
    except ImportError:
        print("Ray is not installed, so nothing was measured: pip install 'trainlore[ray]'")
        return 0
    if not sys.platform.startswith("linux"):
        print("the limits are of Linux, so nothing was measured")
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(args.size, folder)
        both = {on: watched(on, args, folder) for on in ("local", "ray")}
        here, there = (np.load(folder / f"{on}.npz") for on in ("local", "ray"))
        rows = both["ray"]["rows"]
        print(f"{rows[0]:,} texts ({args.size} MiB), {rows[1]:,} vectors ({args.size} MiB); two workers,")
        print(
            f"a store of {args.store} MiB, {args.room} MiB a process beside {both['ray']['libraries'] / MIB:.0f} of libraries"
        )
        different = 0
        for key in here.files:
            if key in ("scores", "embeddings"):
                same = here[key].shape == there[key].shape and np.allclose(here[key], there[key], atol=1e-5)
            else:
                same = np.array_equal(here[key], there[key])
            different += not same
            print(f"  {key:<16} {len(here[key]):>9,} rows, {'the same' if same else 'DIFFERENT'}")
        for on, found in both.items():
            took = ", ".join(f"{k} {v:.0f} s" for k, v in found["seconds"].items())
            peaks = ", ".join(f"{k} {v / MIB:.0f} MiB" for k, v in sorted(found["peaks"].items()))
            print(f"  {on:<6} {took}\n         peaks: {peaks}")
    return int(bool(different))


if __name__ == "__main__":
    raise SystemExit(main())
