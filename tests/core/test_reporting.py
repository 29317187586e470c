"""Trackers get the numbers of every training; one that is not installed is named."""

from __future__ import annotations

import sys
import types

import pytest
import yaml

from trainlore import reporting
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.recipe import read

RECIPE = """
given: {pool: world:digits/noisy, net: {model: mlp, width: 8}}
steps:
  - train: {model: $net, data: $pool, steps: 5, precision: fp32, as: one}
  - train: {model: $one, data: $pool, steps: 3, precision: fp32, as: two}
"""


class Fake(types.ModuleType):
    """What is asked of wandb."""

    def __init__(self):
        super().__init__("wandb")
        self.lines, self.done = [], False

    def init(self, **how):
        self.how = how
        return types.SimpleNamespace(log=lambda numbers, step: self.lines.append((step, numbers)), finish=self.finish)

    def finish(self):
        self.done = True


def test_every_step_of_every_training_is_told(tmp_path, monkeypatch):
    fake = Fake()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    execute(read(yaml.safe_load(RECIPE)), tmp_path / "run", report_to=("wandb",))
    assert [step for step, _ in fake.lines] == [1, 2, 3, 4, 5, 6, 7, 8]  # steps only grow
    assert {"01-one/loss", "01-one/lr"} <= set(fake.lines[0][1]) and "02-two/loss" in fake.lines[5][1]
    assert fake.done and fake.how["name"] == "run"


def test_tensorboard_files_hold_the_losses(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    execute(read(yaml.safe_load(RECIPE)), tmp_path / "run", report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("01-one/loss")] == [1, 2, 3, 4, 5]


def test_what_is_missing_or_unknown_is_said_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(Bad, match="there are tensorboard, mlflow, wandb"):
        reporting.named("tensorbored")
    assert reporting.named("wandb, mlflow") == ("wandb", "mlflow") and reporting.named("") == ()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Bad, match="pip install wandb"):
        execute(read(yaml.safe_load(RECIPE)), tmp_path / "run", report_to=("wandb",))
