"""What every test shares: one thread each (two run side by side), no network, caches kept apart from the user's."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--all-pairs", action="store_true", help="try every ordered pair of parts, not one in thirteen")


def pytest_collection_modifyitems(config, items):
    """Tests marked slow run when they are asked for: -m slow."""
    if "slow" in (config.option.markexpr or ""):
        return
    left = [item for item in items if "slow" in item.keywords]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if "slow" not in item.keywords]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINLORE_HOME", str(tmp_path / "home"))
    return tmp_path
