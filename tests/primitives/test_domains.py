"""Domains: codes, shares and odds by hand."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainlore.nouns import Data
from trainlore.primitives.domains import (
    codes_of,
    domain_losses,
    domain_means,
    domains,
    exponentiated,
    mixed_rows,
    named_shares,
    row_odds,
)
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import world


@pytest.mark.parametrize("column", [["b", "a", "c", "a"], [2, 1, 30, 1], [True, False, True, False]])
def test_codes_are_places_among_the_sorted_names(column):
    names, code = domains(Data.of({"domain": column}), "domain", "x")
    assert names == [str(n) for n in sorted(set(column))] and code.dtype == np.int64
    assert [names[c] for c in code] == [str(v) for v in column]


def test_rows_in_play_only():
    data = Data.of({"domain": ["b", "a", "c", "a"]}).take([3, 0])
    assert domains(data, "domain", "x")[0] == ["a", "b"] and domains(data, "domain", "x")[1].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (Data.of({"label": [1]}), "needs column 'domain'"),
        (Data.of({"domain": ["a"]}).take([]), "no rows"),
        (Data.of({"domain": pa.array(["a", None, "b"])}), "names no domain in 1 rows"),
        (Data.of({"domain": [[1, 2], [3]]}), "one name a row"),
        (Data.of({"domain": np.zeros((2, 2))}), "one name a row"),
    ],
)
def test_columns_that_name_no_domains(data, why):
    with pytest.raises(ValueError, match=f"x.*{why}"):
        domains(data, "domain", "x")


def test_codes_among_given_names():
    data = Data.of({"domain": ["b", "a", "b"]})
    assert codes_of(data, "domain", ["a", "b"], "x").tolist() == [1, 0, 1]
    assert codes_of(data, "domain", ["b", "a"], "x").tolist() == [0, 1, 0]
    for names in (["a", "b", "c"], ["b"]):
        with pytest.raises(ValueError, match="x has the domains a, b"):
            codes_of(data, "domain", names, "x")


def test_named_shares_leave_the_rest_its_proportions():
    assert named_shares(["a", "b", "c"], {"a": 0.5}, np.array([10, 30, 60]), "x") == pytest.approx([0.5, 1 / 6, 1 / 3])
    for shares in ({"z": 0.5}, {"a": 1.2}, {"a": -0.1}, {"a": 0.2, "b": 0.2, "c": 0.2}):
        with pytest.raises(ValueError, match="x: shares"):
            named_shares(["a", "b", "c"], shares, np.array([1, 1, 1]), "x")


def test_odds_sum_to_the_shares():
    code, shares = torch.tensor([0, 2, 0, 1, 2, 2]), torch.tensor([0.5, 0.2, 0.3])
    odds = row_odds(code, shares)
    for k in range(3):
        mine = [float(o) for o, c in zip(odds, code, strict=True) if c == k]
        assert sum(mine) == pytest.approx(float(shares[k])) and max(mine) == min(mine)
    assert torch.equal(odds, row_odds(code, shares, torch.tensor([2, 1, 3])))
    with pytest.raises(ValueError, match="domain 3 has a share of 0.25 and no rows"):
        row_odds(code, torch.full((4,), 0.25))
    assert row_odds(code, torch.tensor([0.5, 0.2, 0.3, 0.0])).isfinite().all()


def test_mixed_rows_have_the_shares_and_repeat_as_little_as_they_can():
    code = np.array([0] * 4 + [1] * 10)
    rows = mixed_rows(code, np.array([0.75, 0.25]), 14, np.random.default_rng(0))
    counts = np.bincount(rows, minlength=14)
    assert len(rows) == 14 and counts[:4].sum() == 11 and sorted(counts[:4]) == [2, 3, 3, 3] and counts[4:].max() == 1
    assert np.bincount(mixed_rows(code, np.array([1 / 3, 2 / 3]), 3, np.random.default_rng(0)) >= 4).tolist() == [1, 2]
    with pytest.raises(ValueError, match="domain 2"):
        mixed_rows(code, np.array([0.5, 0.0, 0.5]), 4, np.random.default_rng(0))


def test_means_and_losses_of_domains():
    values, code = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 0.0]]), torch.tensor([1, 0, 1])
    assert domain_means(values, code, 2).tolist() == [[3.0, 4.0], [3.0, 1.0]]
    nouns, run = world("digits"), Run(0)
    data, model = nouns["data"].take(range(50)), nouns["model"]
    names, digit = domains(data, "label", "x")
    rows = run.infer(model, data, lambda b, out: per_row(rowwise("classifier", b, out), b, "classifier")).numpy()
    by_hand = [rows[np.asarray(data["label"]) == int(n)].mean() for n in names]
    assert domain_losses(run, model, data, digit, len(names)).tolist() == pytest.approx(by_hand, rel=1e-5)


def test_the_exponentiated_step_by_hand():
    w, d = [0.2, 0.3, 0.5], [0.1, 0.0, 0.05]
    raw = [w[i] * np.exp(10 * d[i]) for i in range(3)]
    for floor in (0.0, 0.05):
        by_hand = [(1 - floor) * r / sum(raw) + floor / 3 for r in raw]
        assert exponentiated(torch.tensor(w), torch.tensor(d), 10.0, floor).tolist() == pytest.approx(by_hand)
    assert exponentiated(torch.tensor([0.0, 1.0]), torch.zeros(2), 1.0).tolist() == [0.0, 1.0]
