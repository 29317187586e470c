from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.methods.measure.evaluate.accuracy import Accuracy, correct
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds.tiny import world


class Echo(torch.nn.Module):
    """Logits that are the features."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * self.one


def test_the_largest_logit_decides():
    logits = torch.tensor([[0.1, 0.2, 0.0], [3.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
    assert correct(logits, torch.tensor([1, 2, 2])).tolist() == [1, 0, 1]
    assert correct(logits, torch.tensor([[0.3, 0.7, 0], [0.9, 0.1, 0], [0.5, 0.4, 0.1]])).tolist() == [1, 1, 0]


def test_one_value_a_row_with_its_id_and_domain():
    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(300, 5)).astype(np.float32), rng.integers(5, size=300)
    data = Data.of({"features": features, "label": label, "domain": ["a" if i % 3 else "b" for i in range(300)]})
    report = Accuracy()(Run(0), Model(Echo()), data.take(range(100, 300)))
    right = features.argmax(1) == label
    assert report["accuracy"].values.tolist() == right[100:].tolist() and report["accuracy"].rows.tolist() == list(
        range(100, 300)
    )
    assert report["accuracy"].by("domain")["b"] == pytest.approx(
        right[[i for i in range(100, 300) if i % 3 == 0]].mean()
    )


def test_a_language_model_is_weighed_by_tokens():
    at = world("text")
    few = at["data"].take(range(20))
    report = Accuracy()(Run(0), at["teacher"], few)
    hits = tokens = 0
    for i in range(20):
        batch = few.batch([i], at["teacher"])
        with torch.no_grad():
            said = at["teacher"](batch).argmax(-1)[0, :-1]
        wanted = batch["labels"][0, 1:]
        hits += int(((said == wanted) & (wanted >= 0)).sum())
        tokens += int((wanted >= 0).sum())
    assert report.value == pytest.approx(hits / tokens) and len(report["accuracy"].values) == 20


def test_bad_input_is_named():
    at = world("digits")
    with pytest.raises(ValueError, match="'label'"):
        Accuracy()(at["model"], at["spare"])
    with pytest.raises(ValueError, match="no rows"):
        Accuracy()(at["model"], at["data"].take([]))
    with pytest.raises(ValueError, match="regressor"):
        Accuracy()(Model(Echo(), "regressor"), at["data"])
