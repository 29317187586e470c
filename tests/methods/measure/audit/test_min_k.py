import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.measure.audit.min_k import MinK, beaten, min_k
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


@pytest.mark.parametrize("share", [0.05, 0.2, 0.6, 1.0])
def test_score_is_the_mean_of_the_least_likely(share):
    """The authors' loop: sort, take the first int(n * share), average; at least one."""
    logp = -torch.rand(5, 12).double() * 9
    n = torch.tensor([12, 7, 3, 1, 10])
    got = min_k(logp, torch.arange(12) < n[:, None], share)
    for row in range(5):
        values = sorted(logp[row, : n[row]].tolist())
        low = values[: max(1, int(len(values) * share))]
        assert got[row].item() == pytest.approx(sum(low) / len(low), abs=1e-12)


def test_the_mean_of_shares_beaten_is_the_area_under_the_curve():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    seen, unseen = rng.integers(0, 9, 40) / 4 + 0.5, rng.integers(0, 9, 30) / 4
    auc = roc_auc_score([1] * 40 + [0] * 30, np.concatenate([seen, unseen]))
    assert beaten(seen, unseen).mean() == pytest.approx(auc)
    assert beaten(np.array([1.0, 3.0, 2.0]), np.array([2.0])).tolist() == [0, 1, 0.5]


def test_a_memorized_row_is_found():
    nouns, run = world("text"), Run(0)
    seen, unseen = nouns["data"].take(range(24)), nouns["data"].take(range(100, 130))
    model = run.fit(nouns["model"], seen, steps=150, **{**HOW["text"], "lr": 1e-2})
    report = run.step(MinK(unseen=unseen), model, seen)
    assert report["auc"].value > 0.8 and report["caught_at_5%"].value > 0.3 and len(report["auc"].values) == 24
    fresh = run.step(MinK(unseen=unseen), nouns["prior"], nouns["data"].take(range(130, 160)))
    assert abs(fresh["auc"].value - 0.5) < 0.25 and math.isfinite(report["score"].value)


def test_bad_fields_are_named():
    nouns = world("text")
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            MinK(unseen=nouns["held_out"], share=share)(nouns["model"], nouns["data"])
    with pytest.raises(ValueError, match="unseen"):
        MinK(unseen=nouns["held_out"].take([]))(nouns["model"], nouns["data"])
    with pytest.raises(ValueError, match="causal"):
        MinK(unseen=nouns["held_out"])(world("digits")["model"], nouns["data"])


def measure(seed, arm):
    """AUC of rows trained on for a few epochs against rows that were not; rival: the plain mean log probability."""
    nouns, run = world("text", seed), Run(seed)
    order = run.numpy("split").permutation(len(nouns["data"]))
    seen, unseen = nouns["data"].take(order[:100]), nouns["data"].take(order[100:200])
    model = run.fit(nouns["model"], seen, steps=60, **{**HOW["text"], "lr": 1e-2})
    return run.step(MinK(unseen=unseen), model, seen)["auc" if arm == "method" else "auc_of_loss"].value


CLAIM = Claim("min_k", "text", "mean log probability", "AUC of seen against unseen rows", "higher", measure)
