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
import yaml
from safetensors.numpy import load_file

from processes.life import RECIPE, live
from trainlore import execute as engine
from trainlore import runs
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.execute import step as steps
from trainlore.recipe import read
from trainlore.runs import Interrupted, Run
from trainlore.store import Store


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


def grown(folder):
    """The model of the third step, as the store keeps it."""
    record = json.loads((folder / "run.json").read_text())
    return Store(folder.parent / ".store").get(record["steps"][2]["key"])


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
    whole = two(recipe, tmp_path / "a" / "whole")
    out, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, out
    record = json.loads((tmp_path / "a" / "whole" / "run.json").read_text())
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
    weights = [grown(tmp_path / name).fingerprint for name in ("a/whole", "run")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("room", [20, 90, 160, 260])
def test_a_disk_that_fills_up_ends_a_run_that_can_be_resumed(undisturbed, tmp_path, room, monkeypatch):
    """`room`: kilobytes that are left when the run begins."""
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path]).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        filler, folder = tmp_path / "filler", tmp_path / "run"
        filler.write_bytes(bytes((4 << 20) - (room << 10)))
        monkeypatch.setattr(runs, "EVERY", 0.0)
        with pytest.raises((Bad, OSError), match="disk is full|No space left"):
            execute(read(yaml.safe_load(RECIPE)), folder)
        filler.unlink()
        if (folder / "run.json").exists():
            assert not list(folder.rglob("*.part"))
        again = execute(read(yaml.safe_load(RECIPE)), folder, resume=(folder / "recipe.yaml").exists())["grown"]
        assert all((again.net.state_dict()[k].numpy() == v).all() for k, v in undisturbed[0].items())
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


ADAPTED = """
name: adapted
given: {pool: world:digits/noisy, test: world:digits/test, net: {model: mlp, width: 16}}
steps:
  - lora: {model: $net, rank: 2, as: adapting}
  - train: {model: $adapting, data: $pool, steps: 40, precision: fp32, as: adapted}
  - accuracy: {model: $adapted, data: $test, as: first}
  - train: {model: $net, data: $pool, steps: 30, precision: fp32, as: plain}
  - accuracy: {model: $adapted, data: $test, as: second}
"""


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """A run that was stopped in its second training; the first one's model has adapters, which the store does not keep."""
    log = Run.log

    def stop(self, record, often=True):
        log(self, record, often)
        self.interrupted = self.label == "04-plain" and record["t"] == 20

    monkeypatch.setattr(runs, "EVERY", 0.0)
    with monkeypatch.context() as m, pytest.raises(Interrupted):
        m.setattr(Run, "log", stop)
        execute(read(yaml.safe_load(ADAPTED)), tmp_path / "run")
    return tmp_path / "run"


def test_what_the_store_cannot_keep_goes_on_from_its_checkpoint(stopped, tmp_path):
    whole = execute(read(yaml.safe_load(ADAPTED)), tmp_path / "a" / "run")
    before = len(lines(stopped))
    again = execute(read(yaml.safe_load(ADAPTED)), stopped, resume=True)
    assert [x["t"] for x in lines(stopped)[before:]] == list(
        range(22, 31)
    )  # nothing of the first training is made anew
    for name in ("adapted", "plain"):
        assert again[name].fingerprint == whole[name].fingerprint
    assert not (stopped / "checkpoints").exists()


def test_checkpoints_of_a_step_that_was_another_are_not_gone_on_from(stopped, monkeypatch):
    monkeypatch.setattr(steps, "shared", lambda: "the primitives were edited")
    before = len(lines(stopped))
    execute(read(yaml.safe_load(ADAPTED)), stopped, resume=True)
    assert [x["t"] for x in lines(stopped)[before:]] == [*range(1, 41), *range(1, 31)]


def test_a_run_that_is_still_at_work_is_not_resumed_beside_it(stopped, monkeypatch):
    monkeypatch.setattr(engine, "LETS_GO", 0.2)
    record = (stopped / "run.json").read_text()
    with engine._alone(stopped):
        for how in ({"resume": True}, {"force": True}):
            with pytest.raises(Bad, match="another process is at work in"):
                execute(read(yaml.safe_load(ADAPTED)), stopped, **how)
        assert (stopped / "run.json").read_text() == record
    execute(read(yaml.safe_load(ADAPTED)), stopped, resume=True)


def test_a_run_says_where_it_trains_and_what_fell_out_of_the_graphs(tmp_path):
    made = {
        "given": {"net": {"model": "mlp", "width": 16}, "pool": "world:digits/noisy"},
        "steps": [
            {"train": {"model": "$net", "data": "$pool", "steps": 2, "precision": "fp32", "compile": "aot_eager"}}
        ],
    }
    told: list = []
    execute(read(made), tmp_path / "run", tell=told.append)
    assert "on cpu, float32" in told[1] and "by aot_eager" in told[2]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["steps"][0]["compiled"]["backend"] == "aot_eager"
