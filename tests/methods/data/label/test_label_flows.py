from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.label.label_flows import Coupling, Flow, LabelFlows, disagreement
from trainlore.methods.data.label.label_votes import LabelVotes
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import data


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_log_determinant_is_that_of_the_jacobian(classes):
    torch.manual_seed(0)
    flow = Flow(4, classes, 8, 2).double()
    for p in flow.parameters():
        torch.nn.init.normal_(p, std=0.4)
    x, z = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, classes, dtype=torch.float64)
    out = flow(x, z)
    for i in range(3):
        jacobian = torch.autograd.functional.jacobian(lambda v, i=i: flow(x[i : i + 1], v[None])[0, :-1], z[i])
        assert out[i, -1].item() == pytest.approx(torch.linalg.slogdet(jacobian)[1].item(), rel=1e-5)


def test_a_coupling_moves_its_entries_alone_and_little():
    torch.manual_seed(0)
    part, y = Coupling(2, torch.tensor([True, False, True]), 8), torch.randn(5, 3)
    out, log_det = part(torch.randn(5, 2), y)
    assert torch.equal(out[:, 1], y[:, 1]) and (out[:, 0] != y[:, 0]).all()
    assert (log_det.abs() <= 1).all()  # two entries, each by at most e to the 1/2


def test_disagreement_is_the_error_rate_of_a_function_on_a_class():
    votes, truth = np.array([[0, 1], [1, -1], [2, 2], [0, -1]]), np.array([0, 0, 2, 1])
    one = torch.nn.functional.one_hot
    got = disagreement(
        one(torch.tensor(truth), 3).float(),
        one(torch.tensor(votes).clamp(min=0), 3).float(),
        torch.tensor(votes >= 0).float(),
    )
    for f in range(2):
        rows = [i for i in range(4) if votes[i, f] >= 0]
        for k in range(3):
            wrong = sum((votes[i, f] == k) != (truth[i] == k) for i in rows)
            assert got[f, k].item() == pytest.approx(wrong / len(rows))


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
        ({"column": "truth"}, "no vectors"),
        ({"column": "x"}, "no column 'x'"),
    ):
        with pytest.raises(ValueError, match=words):
            LabelFlows(**{"steps": 1, **fields})(rows)
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
