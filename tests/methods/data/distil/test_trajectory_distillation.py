from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainlore.claims import Claim
from trainlore.methods.data.distil.trajectory_distillation import TrajectoryDistillation, flat_gradient, matching_loss
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import world

X = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1])


def linear(weights, x, y):
    return F.cross_entropy(x @ weights[0] + weights[1], y)


def some(seed):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((2, 2), (2,))]


def test_the_flat_gradient_is_the_formula_on_one_long_vector():
    w, rho, alpha = some(0), 0.3, 0.4

    def slope(flat):
        parts = [flat[:4].reshape(2, 2).requires_grad_(), flat[4:].requires_grad_()]
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(linear(parts, X, Y), parts)])

    flat = torch.cat([v.reshape(-1) for v in w])
    g = slope(flat.clone())
    h = slope(flat + rho * flat**2 * g / (flat * g).norm())
    wanted = h - alpha * (g - (g @ h) / (h @ h) * h)
    got = torch.cat([v.reshape(-1) for v in flat_gradient(linear, w, X, Y, rho, alpha)])
    assert torch.allclose(got, wanted)
    plain = torch.cat([v.reshape(-1) for v in flat_gradient(linear, w, X, Y, 0.0, alpha)])
    assert torch.allclose(plain, g)


def test_the_matching_loss_is_that_of_sgd_and_its_slope_that_of_differences():
    start, goal, rate = some(1), some(2), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    rows = X.clone().requires_grad_()
    loss = matching_loss(linear, start, goal, rows, Y, rate, 3)
    layer = torch.nn.Linear(2, 2).double()
    layer.weight.data, layer.bias.data = start[0].T.clone(), start[1].clone()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.2)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(layer(X), Y).backward()
        optimizer.step()
    ends = [layer.weight.data.T, layer.bias.data]
    missed, way = (sum(float(((a - b) ** 2).sum()) for a, b in zip(s, goal, strict=True)) for s in (ends, start))
    assert loss.item() == pytest.approx(missed / way)
    loss.backward()
    step = torch.zeros_like(X)
    step[1, 0] = 1e-5
    up, down = (matching_loss(linear, start, goal, X + s * step, Y, rate, 3).item() for s in (1, -1))
    assert rows.grad[1, 0].item() == pytest.approx((up - down) / 2e-5, rel=1e-4)
    assert rate.grad.abs() > 0


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
