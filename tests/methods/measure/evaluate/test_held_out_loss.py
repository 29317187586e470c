from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from trainlore.methods.measure.evaluate.held_out_loss import HeldOutLoss
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def test_a_classifiers_rows_are_the_textbooks():
    at = world("digits")
    report = HeldOutLoss()(Run(0), at["teacher"], at["test"])
    with torch.no_grad():
        logits = at["teacher"].net(torch.tensor(at["test"]["features"])).double().numpy()
    wanted = [math.log(sum(math.exp(v) for v in z)) - z[y] for z, y in zip(logits, at["test"]["label"], strict=True)]
    assert np.allclose(report["loss"].values, wanted, atol=1e-5) and report["loss"].better == "lower"
    assert report["loss"].notes["exceeded_by_5%"] == pytest.approx(np.quantile(wanted, 0.95), abs=1e-4)


def test_a_language_models_value_is_the_mean_over_tokens_of_each_domain():
    at = world("text")
    report = HeldOutLoss()(Run(0), at["teacher"], at["held_out"])
    total = {"a": [0.0, 0], "b": [0.0, 0]}
    for i, domain in enumerate(at["held_out"]["domain"].to_pylist()):
        batch = at["held_out"].batch([i], at["teacher"])
        with torch.no_grad():
            logs = at["teacher"](batch)[0].double().log_softmax(-1)
        for t, y in enumerate(batch["labels"][0, 1:].tolist()):
            if y >= 0:
                total[domain][0] -= logs[t, y].item()
                total[domain][1] += 1
    by = report["loss"].by("domain")
    assert all(by[d] == pytest.approx(s / n, rel=1e-4) for d, (s, n) in total.items())
    mean = sum(s for s, _ in total.values()) / sum(n for _, n in total.values())
    assert report.value == pytest.approx(mean, rel=1e-4) and report["loss"].notes["perplexity"] == pytest.approx(
        math.exp(mean), rel=1e-3
    )


def test_numbers_are_squared_errors():
    net = torch.nn.Linear(2, 1)
    data = Data.of({"features": np.array([[1, 2], [0, 1]], np.float32), "label": np.array([0.5, -1.0], np.float32)})
    out = net(torch.tensor(data["features"]))[:, 0].detach().numpy()
    report = HeldOutLoss()(Run(0), Model(net, "regressor"), data)
    assert report["loss"].values == pytest.approx((out - data["label"]) ** 2, rel=1e-5)


def test_bad_input_is_named():
    at = world("digits")
    with pytest.raises(ValueError, match="'label'"):
        HeldOutLoss()(at["model"], at["spare"])
    with pytest.raises(ValueError, match="no rows"):
        HeldOutLoss()(at["model"], at["data"].take([]))
