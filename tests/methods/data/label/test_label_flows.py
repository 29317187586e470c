from __future__ import annotations

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.label.label_flows import LabelFlows
from trainlore.methods.data.label.label_votes import LabelVotes
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import data


def pair(seed: int) -> Data:
    """Two kinds of digits and the votes of five single pixels, each cut halfway between the kinds' means."""
    rng = Run(seed).numpy("pair")
    a, b = rng.permutation(10)[:2]
    rows, known = (
        d.where(np.isin(d[c], (a, b))) for d, c in ((data("digits/noisy"), "truth"), (data("digits/test"), "label"))
    )
    x, y = known["features"], known["label"] == b
    low, high = x[~y].mean(0), x[y].mean(0)
    pixels = rng.permutation(np.argsort(-x.std(0), kind="stable")[:30])[:5]
    rules = [{"label": int(high[p] > low[p]), "at": int(p), "above": float(low[p] + high[p]) / 2} for p in pixels]
    rules += [{"label": 1 - r["label"], "at": r["at"], "below": r["above"]} for r in rules]
    votes = LabelVotes(rules=tuple(rules), column="features")(rows)["votes"]
    votes = np.maximum(votes[:, :5], votes[:, 5:])
    return rows.without("label").with_(truth=(rows["truth"] == b).astype(np.int64), votes=votes)


def test_rows_nobody_votes_on_are_labelled_from_their_features_or_dropped():
    rows = pair(0)
    votes = rows["votes"].copy()
    votes[:9] = -1
    fields = {"classes": 2, "flows": 1, "width": 8, "steps": 60, "lr": 1e-2}
    kept = LabelFlows(**fields, uncovered="keep")(rows.with_(votes=votes))
    assert len(kept) == len(rows) and kept["label"].min() >= 0 and np.allclose(kept["shares"].sum(1), 1)
    assert LabelFlows(**fields)(rows.with_(votes=votes)).ids.tolist() == rows.ids[9:].tolist()
    small = LabelFlows(**fields, batch_size=50, uncovered="keep", error=(0.2,))(rows.with_(votes=votes))
    assert np.isfinite(small["shares"]).all() and not np.array_equal(small["shares"], kept["shares"])


def test_bad_input_is_named():
    rows = pair(0)
    for fields, words in (
        ({"flows": 0}, "flows=0"),
        ({"error": (1.5,)}, r"error=\(1.5,\)"),
        ({"error": (0.1, 0.2)}, "each of 5 functions"),
        ({"penalty": -1.0}, "penalty=-1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"column": "truth"}, "no vectors"),
        ({"column": "x"}, "needs column 'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            LabelFlows(**{"steps": 1, **fields})(rows)
    x = rows["features"].copy()
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite for 1 of"):
        LabelFlows(steps=1)(rows.with_(features=x))
    with pytest.raises(ValueError, match="no function votes"):
        LabelFlows()(rows.with_(votes=np.full((len(rows), 2), -1)))


def measure(seed: int, arm: str) -> float:
    """Both know how often each function errs, as in the authors' example."""
    rows = pair(seed)
    votes, truth = rows["votes"], rows["truth"]
    error = (votes != truth[:, None]).mean(0)
    if arm == "rival":
        worth = np.log((1 - error) / error)
        return float((((2 * votes - 1) @ worth > 0) == truth).mean())
    out = LabelFlows(classes=2, flows=2, width=32, steps=150, error=tuple(error.tolist()))(Run(seed), rows)
    return float((out["label"] == truth).mean())


CLAIM = Claim(
    method="label_flows",
    world="digits",
    rival="a vote weighted by the log-odds of the same error rates",
    quantity="share of rows labelled right, two kinds of digits by five single pixels of known error rates",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
