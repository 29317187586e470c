from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.clean.aum import AUM, limit, margins
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_the_margin_is_against_the_largest_other():
    rng = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(50, 6, generator=rng), torch.randint(6, (50,), generator=rng)
    for z, y, m in zip(logits.tolist(), labels.tolist(), margins(logits, labels).tolist(), strict=True):
        assert m == pytest.approx(z[y] - max(v for k, v in enumerate(z) if k != y))


@pytest.mark.parametrize("percentile", [0.0, 50.0, 90.0, 99.0, 100.0])
def test_a_row_is_dropped_if_more_than_the_rest_of_the_threshold_samples_is_larger(percentile):
    rng = np.random.default_rng(0)
    area, wrong = rng.normal(size=80), rng.normal(size=200) - 1
    by_hand = [sum(w > a for w in wrong) / 200 > 1 - percentile / 100 + 1e-9 for a in area]
    assert (area < limit(wrong, percentile)).tolist() == by_hand


class Watched(Run):
    """A run that remembers what was trained on."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), data]
        made = super().fit(model, data, *parts, **how)
        self.last = parts, model
        return made


def test_two_trainings_with_different_rows_in_the_extra_class():
    at, run = world("digits"), Watched(0)
    before = at["model"].fingerprint
    out = AUM(model=at["model"], epochs=4.0)(run, at["noisy"].take(range(200)))
    labels = at["noisy"]["label"][:200]
    fake = [np.flatnonzero(d["label"] == 10) for d in run.fits]
    assert [len(f) for f in fake] == [200 // 11] * 2 and not set(fake[0]) & set(fake[1])
    for made, f in zip(run.fits, fake, strict=True):
        rest = np.setdiff1d(range(200), f)
        assert (made["label"][rest] == labels[rest]).all()
    assert run.last[1].net[-1].out_features == 11 and at["model"].fingerprint == before
    assert set(out["label"].tolist()) <= set(range(10)) and 0 < len(out) < 200
    every, once = out.whole().take(range(200)), np.isin(np.arange(200), np.concatenate(fake))
    kept, limits = np.isin(every.ids, out.ids), every["aum_limit"]
    assert (every["aum"] < limits)[~kept].all()  # the threshold that was found stays beside what was held against it
    assert len(set(limits[once])) == 2 and ((every["aum"] >= limits) == kept)[once].all()  # themselves in one training


def test_the_area_is_the_mean_margin_after_the_first_epoch():
    at, run = world("digits"), Watched(0)
    AUM(model=at["model"], epochs=3.0, batch_size=50)(run, at["data"].take(range(100)))
    (part,), _ = run.last
    assert part.seen["count"].tolist() == [2.0] * 100


def test_rows_that_were_drawn_in_the_first_epoch_alone_are_not_judged():
    at, run = world("digits"), Watched(0)
    out = AUM(model=at["model"], epochs=1.5, batch_size=50)(run, at["noisy"].take(range(200)))
    fake, found = [d["label"] == 10 for d in run.fits], out.whole().take(range(200))
    seen = run.last[0][0].seen["count"].numpy() > 0
    assert 90 < seen.sum() < 110 and np.isfinite(found["aum"][seen & ~fake[1]]).all()
    unjudged = np.isnan(found["aum"])
    assert (
        unjudged.sum() > 20
        and set(found.ids[unjudged]) <= set(out.ids)
        and np.isnan(found["aum_limit"][unjudged]).all()
    )


def test_percentile_0_drops_nothing_and_bad_fields_are_named():
    at = world("digits")
    rows = at["data"].take(range(60))
    every = AUM(model=at["model"], epochs=4.0, percentile=0.0)(rows)
    assert every.ids.tolist() == list(range(60)) and set(every["aum_limit"].tolist()) == {-np.inf}
    for fields, name in (({"percentile": 101.0}, "percentile=101"), ({"epochs": 1.0}, "epochs=1")):
        with pytest.raises(ValueError, match=name):
            AUM(model=at["model"], **fields)(rows)
    with pytest.raises(ValueError, match="'label'"):
        AUM(model=at["model"])(at["spare"])
    for label in (["x", "y"] * 30, np.full(60, 1.5), np.zeros(60, np.int64)):
        with pytest.raises(ValueError, match="class numbers, of two classes or more"):
            AUM(model=at["model"])(rows.with_(label=label))
    with pytest.raises(ValueError, match="more rows than classes"):
        AUM(model=at["model"])(rows.take(range(5)))
    with pytest.raises(ValueError, match="one logit a class"):
        AUM(model=preset("mlp", classes=3), epochs=2.0)(rows)


def found(dropped: np.ndarray, wrong: np.ndarray) -> float:
    """F1 of the rows (positions) that were called wrong."""
    hits = wrong[dropped].sum()
    return float(2 * hits / (len(dropped) + wrong.sum()))


def measure(seed: int, arm: str) -> float:
    at, rows = world("digits", seed), data("digits/noisy")
    wrong = rows["label"] != rows["truth"]
    if arm == "method":
        kept = AUM(model=at["model"], epochs=20.0)(Run(seed), rows)
        return found(np.setdiff1d(np.arange(1000), kept.ids), wrong)
    model = Run(seed).fit(at["model"], rows, epochs=40, **HOW["digits"])  # as much training: the fifth it fits worst
    loss = Run(seed).infer(
        model, rows, lambda b, o: torch.nn.functional.cross_entropy(o, b["labels"], reduction="none")
    )
    return found(np.argsort(-loss.numpy())[:200], wrong)


CLAIM = Claim(
    method="aum",
    world="digits",
    rival="the fifth with the largest loss after as much training",
    quantity="F1 of finding wrong labels",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
