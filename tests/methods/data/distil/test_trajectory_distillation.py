from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainlore.claims import Claim
from trainlore.methods.data.distil.trajectory_distillation import TrajectoryDistillation
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world

FEW = {"experts": 1, "epochs": 4, "lr_expert": 0.3, "batch_size": 50, "student_steps": 4, "last_start": 2, "ema": 0.5}


def test_rows_come_from_real_ones_and_move_to_a_shorter_way():
    at = world("digits")
    before = at["model"].fingerprint
    made = TrajectoryDistillation(model=at["model"], per_class=2, iterations=5, lr_rows=1.0, **FEW)(Run(0), at["data"])
    assert made["label"].tolist() == [k for k in range(10) for _ in range(2)] and made["features"].shape == (20, 64)
    origin = at["data"].take(made["parents"])
    assert origin["label"].tolist() == made["label"].tolist() and at["model"].fingerprint == before
    assert (np.abs(made["features"] - origin["features"]).max(1) > 0).all() and len(set(made["rate"].tolist())) == 1
    still = TrajectoryDistillation(model=at["model"], iterations=1, lr_rows=0.0, lr_rate=0.0, **FEW)(Run(0), at["data"])
    assert np.allclose(still["features"], at["data"].take(still["parents"])["features"]) and still["rate"][
        0
    ] == np.float32(0.3)
    sharp = TrajectoryDistillation(model=at["model"], per_class=2, iterations=5, lr_rows=1.0, rho=0.0, **FEW)
    assert not np.array_equal(sharp(Run(0), at["data"])["features"], made["features"])


def test_bad_input_is_named():
    at = world("digits")
    for fields, words in (
        ({"per_class": 0}, "per_class=0"),
        ({"per_class": 500}, "class 0 has only"),
        ({"epochs": 2}, "epochs=2 is too few"),
        ({"rho": -1.0}, "rho"),
        ({"lr_expert": 0.0}, "lr_expert"),
        ({"lr_rows": 1e9, "iterations": 9}, "lr_rows"),
    ):
        with pytest.raises(ValueError, match=words):
            TrajectoryDistillation(model=at["model"], **{**FEW, "iterations": 1, **fields})(at["data"])
    with pytest.raises(ValueError, match="'label'"):
        TrajectoryDistillation(model=at["model"])(at["spare"])
    with pytest.raises(ValueError, match="'features'"):
        TrajectoryDistillation(model=at["model"])(Data.of(["a"]))


def taught(rows: Data, rate: float, seed: int) -> float:
    """Test accuracy of a fresh network after 200 steps of SGD on all these rows."""
    net, test = preset("mlp", seed=1000 + seed, width=32).net, data("digits/test")
    x, y = torch.tensor(rows["features"]), torch.tensor(rows["label"])
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
    return float((net(torch.tensor(test["features"])).argmax(1).numpy() == test["label"]).mean())


def measure(seed: int, arm: str) -> float:
    rows, model = world("digits")["data"], preset("mlp", width=32)
    how = {
        "experts": 2,
        "epochs": 6,
        "lr_expert": 0.3,
        "batch_size": 50,
        "student_steps": 8,
        "last_start": 5,
        "ema": 0.9,
    }
    moves = (
        {"iterations": 60, "lr_rows": 3.0, "lr_rate": 1e-3}
        if arm == "method"
        else {"iterations": 1, "lr_rows": 0.0, "lr_rate": 0.0}
    )
    made = TrajectoryDistillation(model=model, **how, **moves)(Run(seed), rows)
    return taught(made, float(made["rate"][0]), seed)


CLAIM = Claim(
    method="trajectory_distillation",
    world="digits",
    rival="the real rows it starts from, one of each class at random",
    quantity="test accuracy of a fresh network trained on ten rows",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
