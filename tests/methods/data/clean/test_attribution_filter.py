from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.clean.attribution_filter import AttributionFilter
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.gradients import Losses
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def gradient(model, rows, i):
    loss = Losses(model)(rows.batch([i], model)).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.net.parameters()))]).double()


def test_the_score_is_the_mean_cosine_or_product_of_gradients():
    at = world("digits")
    model, rows, unsafe, safe = (
        at["model"],
        at["data"].take(range(6)),
        at["test"].take(range(4)),
        at["test"].take([7, 9]),
    )
    for cosine in (True, False):
        how = {"model": model, "unsafe": unsafe, "remove": 0.0, "cosine": cosine}
        alone = AttributionFilter(**how)(Run(0), rows)["attribution"]
        less = alone - AttributionFilter(**how, safe=safe)(Run(0), rows)["attribution"]
        for i in range(6):
            mine = gradient(model, rows, i)
            for targets, got in ((unsafe, alone[i]), (safe, less[i])):
                others = [gradient(model, targets, t) for t in range(len(targets))]
                by_hand = [float(mine @ g / (mine.norm() * g.norm() if cosine else 1)) for g in others]
                assert got == pytest.approx(np.mean(by_hand), rel=1e-3, abs=1e-5)


def test_the_highest_are_removed_and_stay_reachable_with_their_score():
    at = world("digits")
    how = {"model": at["model"], "unsafe": at["test"].take(range(5))}
    out = AttributionFilter(**how, remove=0.1)(Run(0), at["data"])
    every = AttributionFilter(**how, remove=0.0)(Run(0), at["data"])
    assert out.ids.tolist() == sorted(np.argsort(every["attribution"], kind="stable")[:360].tolist())
    gone = np.setdiff1d(every.ids, out.ids)
    assert set(gone.tolist()) <= set(out.dropped().ids.tolist())
    assert out.whole()["attribution"][gone].min() >= out["attribution"].max()
    apart = AttributionFilter(**how, safe=how["unsafe"], remove=0.0)(Run(0), at["data"])
    assert np.abs(apart["attribution"]).max() < 1e-6
    head = AttributionFilter(**how, remove=0.1, layers="3")(Run(0), at["data"])
    assert head.ids.tolist() != out.ids.tolist()


def test_bad_input_is_named():
    at = world("digits")
    none = at["data"].take([])
    for fields, name in (
        ({"remove": 1.0}, "remove=1"),
        ({"unsafe": none}, "unsafe examples was given no rows"),
        ({"safe": none}, "safe examples was given no rows"),
        ({"layers": "nowhere"}, "layers='nowhere'"),
    ):
        with pytest.raises(ValueError, match=name):
            AttributionFilter(**{"model": at["model"], "unsafe": at["test"].take(range(3)), **fields})(at["data"])
    with pytest.raises(
        ValueError, match="unsafe examples: the rows have no column .label. or .labels.*there are features"
    ):
        AttributionFilter(model=at["model"], unsafe=at["test"].without("label"))(at["data"])
    texts, pairs = world("text"), world("pairs")["data"]
    for rows, unsafe, whose in ((pairs, texts["target"], ""), (texts["data"], pairs, "'s unsafe examples")):
        with pytest.raises(
            ValueError, match=f"attribution_filter{whose}: the model reads 'input_ids'.*give one text a row"
        ):
            AttributionFilter(model=texts["prior"], unsafe=unsafe)(rows)


@cache
def spoiled(seed: int):
    """Digits of which some sevens are called ones, among other wrong labels; a model trained on them; five bad outputs."""
    rows, test = data("digits/train"), data("digits/test")
    label, rng = rows["label"].copy(), np.random.default_rng(seed)
    bad = rng.permutation(np.flatnonzero(label == 7))[:30]
    other = rng.permutation(np.setdiff1d(np.arange(len(label)), bad))[:100]
    label[other] = (label[other] + rng.integers(1, 10, 100)) % 10
    label[bad] = 1
    rows = rows.with_(label=label)
    model = Run(seed).fit(preset("mlp", seed=seed, width=32), rows, steps=100, **HOW["digits"])
    sevens = rng.permutation(np.flatnonzero(test["label"] == 7))[:5]
    unsafe = Data.of({"features": test["features"][sevens], "label": np.ones(5, np.int64)})
    return rows, model, unsafe, np.isin(np.arange(len(label)), bad)


def measure(seed: int, arm: str) -> float:
    from sklearn.metrics import average_precision_score

    rows, model, unsafe, bad = spoiled(seed)
    if arm == "method":
        out = AttributionFilter(model=model, unsafe=unsafe, remove=0.03)(Run(seed), rows)
        score = out.whole()["attribution"]
    else:
        run = Run(seed)
        score = run.infer(
            model, rows, lambda b, o: torch.nn.functional.cross_entropy(o, b["labels"], reduction="none")
        ).numpy()
    return float(average_precision_score(bad, score))


CLAIM = Claim(
    method="attribution_filter",
    world="digits",
    rival="the rows with the largest loss",
    quantity="average precision of finding the rows that teach the unwanted answer",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
