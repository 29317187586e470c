from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.kmeans_quality import KMeansQuality, draw_keys, turns
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_turns_are_the_textbooks():
    rng = np.random.default_rng(0)
    cluster, key = rng.integers(0, 4, 50), rng.normal(size=50)
    for i in range(50):
        mates = [j for j in range(50) if cluster[j] == cluster[i]]
        rank = sum(key[j] > key[i] for j in mates)
        assert turns(cluster, key)[i] == pytest.approx((rank + 0.5) / len(mates))
        assert turns(cluster, key, equal=True)[i] == rank


def test_keys_draw_in_proportion_to_weight():
    rng, weight = np.random.default_rng(0), np.array([1.0, 2.0, 5.0, 0.0])
    first = [draw_keys(weight, rng.random(4)).argmax() for _ in range(8000)]
    share = np.bincount(first, minlength=4) / 8000
    assert abs(share - weight / 8).max() < 0.02 and share[3] == 0


def pool(sizes=(60, 30, 10)):
    rng = np.random.default_rng(0)
    crowd = np.repeat(np.arange(len(sizes)), sizes)
    x = np.eye(len(sizes), dtype=np.float32)[crowd] * 20 + rng.normal(size=(len(crowd), len(sizes)))
    return crowd, Data.of(
        {"features": x.astype(np.float32), "quality": rng.random(len(crowd)), "text": ["a b"] * len(crowd)}
    )


def kept_of_each(crowd, **fields):
    return np.bincount(crowd[KMeansQuality(clusters=3, **fields)(pool()[1]).ids]).tolist()


def test_quotas_follow_size_or_are_equal_and_pass_on():
    crowd, _ = pool()
    assert kept_of_each(crowd, keep=0.2) == [12, 6, 2]
    assert kept_of_each(crowd, tokens=0.2) == [12, 6, 2]
    assert kept_of_each(crowd, keep=0.15, quotas="equal") == [5, 5, 5]
    assert kept_of_each(crowd, keep=0.6, quotas="equal") == [
        25,
        25,
        10,
    ]  # the smallest has ten rows; the rest passes on


def test_better_rows_come_more_often():
    _, data = pool()
    even, by_score, by_softmax = (
        np.mean([KMeansQuality(clusters=3, keep=0.2, **f)(Run(s), data)["quality"].mean() for s in range(20)])
        for f in ({"quality": None}, {}, {"odds": "softmax"})
    )
    assert even + 0.08 < by_score and even + 0.03 < by_softmax


def test_bad_fields_are_named():
    _, data = pool()
    low = data.with_(quality=np.full(len(data), -1.0))
    for bad, source, said in (
        ({"clusters": 0}, data, "clusters=0"),
        ({"clusters": 101}, data, "clusters=101"),
        ({"column": "quality", "clusters": 3}, data, "column='quality'"),
        ({"clusters": 3}, low, "quality='quality' has negative"),
        ({"clusters": 3, "keep": 0.0}, data, "keep=0.0"),
    ):
        with pytest.raises(ValueError, match=said):
            KMeansQuality(**bad)(source)


def measure(seed: int, arm: str) -> float:
    """Test accuracy after training on a fifth of rows of which some labels are wrong; quality is a proxy's belief in the label."""
    nouns, run = world("digits", seed), Run(seed)
    noisy = nouns["noisy"]
    shares = run.infer(nouns["proxies"][0], noisy, lambda batch, out: out.softmax(-1)).cpu().numpy()
    noisy = noisy.with_(quality=shares[np.arange(len(noisy)), noisy["label"]].astype(np.float64))
    kept = (KMeansQuality(clusters=10, keep=0.2) if arm == "method" else RandomRows(keep=0.2))(run, noisy)
    model = run.fit(nouns["model"], kept, steps=60, **HOW["digits"])
    return float(
        (
            run.infer(model, nouns["test"], lambda batch, out: out.argmax(-1)).cpu().numpy() == nouns["test"]["label"]
        ).mean()
    )


CLAIM = Claim(
    method="kmeans_quality",
    world="digits",
    rival="random_rows",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
