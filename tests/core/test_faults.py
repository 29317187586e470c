"""Killed at any moment and gone on with, a run ends with the same bits, loses no more than what came after its last checkpoint,
and leaves nothing that cannot be resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from processes.life import RECIPE, live


def process(folder, every=0.05, **how):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "trainlore.execute", "trainlore.loop"])
    made = context.Process(target=live, args=(str(folder), every), kwargs=how)
    made.start()
    return made


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    start = time.monotonic()
    whole = process(folder)
    whole.join()
    assert whole.exitcode == 0
    return load_file(folder / "weights.safetensors"), time.monotonic() - start


def same(folder, wanted):
    found = load_file(folder / "weights.safetensors")
    assert found.keys() == wanted.keys() and all((found[k] == wanted[k]).all() for k in wanted)


def newest(folder):
    """The last step of the last checkpoint of the long training, or 0."""
    found = sorted((folder / "checkpoints").glob("03-*/step-*")) if (folder / "checkpoints").is_dir() else []
    return int(found[-1].name.removeprefix("step-")) if found else 0


def killed(folder, wanted, length, times, seed):
    """Kill the run `times` times at random moments, then let it end."""
    draw = random.Random(seed)
    for _ in range(times):
        before = len(lines(folder))
        at = newest(folder)
        child = process(folder)
        child.join(draw.uniform(0.05, 1.0) * length)
        if child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
            child.join()
        elif child.exitcode == 0:
            break
        fresh = [r["t"] for r in lines(folder)[before:] if r["step"] == "03-grown"]
        if fresh and at:
            assert fresh[0] == at + 1  # gone on from the last checkpoint, not from before it
    child = process(folder)
    child.join()
    assert child.exitcode == 0
    same(folder, wanted)


def test_killed_before_its_first_word_it_can_be_resumed(undisturbed, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / ".run.json.77.part").write_text("{")
    child = process(folder)
    child.join()
    assert child.exitcode == 0
    same(folder, undisturbed[0])


def lines(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(x) for x in path.read_text().splitlines() if x.endswith("}")] if path.exists() else []


def test_killed_at_random_moments(undisturbed, tmp_path):
    killed(tmp_path / "run", *undisturbed, times=5, seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_killed_thirty_times(undisturbed, tmp_path, seed):
    killed(tmp_path / "run", *undisturbed, times=6, seed=seed)


@pytest.mark.parametrize("nth", [1, 3])
def test_killed_while_a_checkpoint_is_written(undisturbed, tmp_path, nth):
    folder = tmp_path / "run"
    child = process(folder, every=0.0, die_while_saving=nth)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert not list((folder / "checkpoints").glob(f"*/step-{nth:010d}"))
    child = process(folder)
    child.join()
    assert child.exitcode == 0
    same(folder, undisturbed[0])
    assert not list(folder.rglob("*.part"))


def two(recipe: Path, folder: Path, *more: str):
    """`torchrun` with two processes, in a group of its own."""
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainlore"]
        + ["resume", str(folder), "-q", *more] * (folder / "run.json").exists()
        + ["run", str(recipe), "--out", str(folder), "-q", *more] * (not (folder / "run.json").exists()),
        env=where,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_killed_and_gone_on_with(tmp_path):
    recipe = tmp_path / "life.yaml"
    recipe.write_text(RECIPE.replace("steps: 400", "steps: 4000"))
    whole = two(recipe, tmp_path / "whole")
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    for wait in (1.0, 0.0, 2.0):
        child, before = two(recipe, tmp_path / "run"), len(lines(tmp_path / "run"))
        while len(lines(tmp_path / "run")) == before and child.poll() is None:
            time.sleep(0.05)
        time.sleep(wait)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()
        time.sleep(1.0)  # its workers see that it is gone
    last = two(recipe, tmp_path / "run")
    out, _ = last.communicate(timeout=300)
    assert last.returncode == 0, out
    again = json.loads((tmp_path / "run" / "run.json").read_text())
    assert again["steps"][-1]["report"] == record["steps"][-1]["report"]
