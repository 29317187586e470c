"""AFLite: scores by hand, what goes in which round, and a planted cue."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.clean import aflite
from trainlore.methods.data.clean.aflite import AFLite, easiest, linear, predictability
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run

SMALL = {"models": 5, "train": 40, "slice": 10}


def rows(n=120, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    x = rng.normal(size=(n, 4)).astype(np.float32)
    x[: n // 2, 0] += 4 * y[: n // 2] - 2  # the first half gives its label away
    return Data.of({"features": x, "label": y})


def test_scores_are_those_of_a_loop():
    data = rows()
    x, y, rng = data["features"], data["label"], np.random.default_rng(3)
    told = {i: [] for i in range(len(y))}
    for _ in range(7):
        order = rng.permutation(len(y)).tolist()
        for i, p in zip(order[90:], linear(x[order[:90]], y[order[:90]], x[order[90:]]), strict=True):
            told[i].append(p == y[i])
    by_hand = [np.mean(t) if t else np.nan for t in told.values()]
    found = predictability(x, y, 90, 7, np.random.default_rng(3))
    assert np.isnan(found).any() and found == pytest.approx(by_hand, nan_ok=True)


def test_the_highest_go_but_none_below_tau():
    score = np.array([0.9, np.nan, 0.7, 1.0, 0.75, 0.2])
    rng = np.random.default_rng(0)
    assert easiest(score, 2, 0.75, rng).tolist() == [0, 3] and easiest(score, 9, 0.75, rng).tolist() == [0, 3, 4]
    assert 20 < np.mean([easiest(np.ones(100), 10, 0.5, rng).mean() for _ in range(20)]) < 80  # ties by lot


def test_the_paper_s_defaults():
    method = AFLite()
    assert (method.models, method.train, method.slice, method.tau) == (64, 10_000, 500, 0.75)


def test_rounds_scores_and_reasons_stay_on_what_was_dropped():
    kept = AFLite(**SMALL)(rows())
    gone = kept.dropped()
    assert len(kept) + len(gone) == 120 and len(kept) >= 40 and (kept["aflite_round"] == -1).all()
    assert (gone["aflite"] >= 0.75).all() and set(np.bincount(gone["aflite_round"])[:-1]) == {10}
    last = kept["aflite"]
    assert len(kept) == 40 or np.sum(last >= 0.75) == 0 or gone["aflite_round"].max() == 7
    assert (gone.ids < 60).mean() > 0.6
    assert len(AFLite(**SMALL, least=100)(rows())) == 100 and len(AFLite(**SMALL, tau=2.0)(rows())) == 120


def test_the_classifiers_are_trained_anew_on_what_is_left(monkeypatch):
    sizes = []
    real = aflite.predictability
    monkeypatch.setattr(aflite, "predictability", lambda x, y, *how: sizes.append(len(y)) or real(x, y, *how))
    AFLite(**SMALL, tau=0.01, least=85)(rows())
    assert sizes == [120, 110, 100, 90]


def test_classes_may_have_names():
    data = rows()
    named = data.without("label").with_(label=["no" if y else "yes" for y in data["label"]])
    assert len(AFLite(**SMALL, least=90)(named)) == 90
    with pytest.raises(ValueError, match="holds lists"):
        AFLite(**SMALL, label="features")(data)


def test_odd_rows():
    same = Data.of({"features": np.ones((60, 3), np.float32), "label": np.zeros(60, np.int64)})
    assert len(AFLite(**SMALL)(same)) == 40  # all alike: all told right
    x = np.ones((60, 3), np.float32)
    x[7, 1] = np.nan
    for data, fields, said in (
        (Data.of({"features": x, "label": np.zeros(60)}), SMALL, "not finite for 1 of 60"),
        (rows(), {}, "train=10000: classifiers learn fewer than the 120 rows; try 24"),
        (rows().take([0, 1, 2]), SMALL, "try 1$"),
        (rows().take([0]), SMALL, "aflite needs 2 rows or more"),
        (rows(), {**SMALL, "models": 0}, "models=0"),
        (rows().without("label"), SMALL, "'label'"),
        (rows(), {**SMALL, "column": "label"}, "no vectors"),
    ):
        with pytest.raises(ValueError, match=said):
            AFLite(**fields)(data)


def measure(seed: int, arm: str) -> float:
    """The share of rows with a planted linear cue among those kept; the true rule is no linear one."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 8)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    cue = rng.random(600) < 0.6
    x[:, 2] = np.where(cue, 2.0 * y - 1, rng.choice([-1, 1], 600)) + 0.3 * rng.normal(size=600)
    data = Data.of({"features": x, "label": y})
    if arm == "method":
        kept = AFLite(models=16, train=200, slice=25)(Run(seed), data)
    else:
        kept = RandomRows(keep=0.35)(Run(seed), data)
    return float(cue[kept.ids].mean())


CLAIM = Claim(
    method="aflite",
    world="points",
    rival="random_rows",
    quantity="share of rows with the cue among those kept",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
