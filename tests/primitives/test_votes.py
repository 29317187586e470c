from __future__ import annotations

import itertools

import numpy as np
import pytest

from trainlore.primitives import votes as V

SEEN = np.array([[0, 0, 1], [1, -1, -1], [-1, -1, -1], [2, 0, -1], [1, 1, 1]])


def planted(n=4000, classes=3, accuracy=(0.9, 0.7, 0.55, 0.8), cover=0.7, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.choice(classes, n, p=[0.5, 0.3, 0.2])
    right = rng.random((n, len(accuracy))) < accuracy
    wrong = (truth[:, None] + rng.integers(1, classes, right.shape)) % classes
    votes = np.where(right, truth[:, None], wrong)
    return np.where(rng.random(votes.shape) < cover, votes, -1), truth


def test_tally_and_majority_by_hand():
    assert V.tally(SEEN, 3).tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0], [1, 0, 1], [0, 3, 0]]
    shares, label = V.majority(SEEN, 3)
    assert label.tolist() == [0, 1, -1, 0, 1]
    assert np.allclose(shares, [[2 / 3, 1 / 3, 0], [0, 1, 0], [1 / 3] * 3, [0.5, 0, 0.5], [0, 1, 0]])
    assert V.majority(SEEN, 3, "abstain")[1].tolist() == [0, 1, -1, -1, 1]
    luck = np.array([0.0, 0.9, 0.5, 0.49, 0.1]), np.array([0.9, 0.9, 0.5, 0.51, 0.9])
    assert [V.majority(SEEN, 3, "random", u)[1].tolist() for u in luck] == [[0, 1, -1, 0, 1], [0, 1, -1, 2, 1]]
    with pytest.raises(ValueError, match="luck"):
        V.majority(SEEN, 3, "random")


def test_the_table_against_loops():
    votes, truth = planted(200)
    truth = np.where(np.arange(200) < 150, truth, -1)
    for j, row in enumerate(V.table(votes, truth, ["a", "b", "c", "d"])):
        mine = [(i, v[j]) for i, v in enumerate(votes) if v[j] >= 0]
        others = [[w for k, w in enumerate(votes[i]) if k != j and w >= 0] for i, _ in mine]
        assert row["name"] == "abcd"[j] and row["classes"] == sorted({int(v) for _, v in mine})
        assert row["coverage"] == pytest.approx(len(mine) / 200)
        assert row["overlap"] == pytest.approx(sum(bool(o) for o in others) / 200)
        clash = sum(any(w != v for w in o) for (_, v), o in zip(mine, others, strict=True))
        assert row["conflict"] == pytest.approx(clash / 200)
        told = [(i, v) for i, v in mine if truth[i] >= 0]
        assert row["accuracy"] == pytest.approx(sum(truth[i] == v for i, v in told) / len(told))
    never = V.table(np.full((4, 2), -1), np.zeros(4, int))
    assert never[0] == {"name": "0", "classes": [], "coverage": 0.0, "overlap": 0.0, "conflict": 0.0, "accuracy": None}
    with pytest.raises(ValueError, match="1 names for 4"):
        V.table(votes, names=["a"])


@pytest.mark.parametrize("full", [False, True])
def test_one_round_of_em_is_bayes_rule_in_plain_loops(full):
    votes, k, f = planted(60)[0], 3, 4
    start, _ = V.majority(votes, k)
    covered = [i for i in range(60) if (votes[i] >= 0).any()]
    hits = np.full((f, k, k), 1 / k**2)
    for i, j, c in itertools.product(covered, range(f), range(k)):
        if votes[i, j] >= 0:
            hits[j, c, votes[i, j]] += start[i, c]
    prior = (start[covered].sum(0) + 1 / k) / (len(covered) + 1)
    accuracy = [sum(hits[j, c, c] for c in range(k)) / hits[j].sum() for j in range(f)]
    got = V.label_model(votes, k, full=full, rounds=1)
    for i in range(60):
        p = prior.copy() if i in covered else np.ones(k)
        for j, c in itertools.product(range(f), range(k)):
            if votes[i, j] >= 0:
                coin = accuracy[j] if votes[i, j] == c else (1 - accuracy[j]) / (k - 1)
                p[c] *= hits[j, c, votes[i, j]] / hits[j, c].sum() if full else coin
        assert np.allclose(got.shares[i], p / p.sum())
    assert np.allclose(got.accuracy, accuracy) and np.allclose(got.prior, prior)


def test_planted_accuracies_and_prior_are_found():
    votes, truth = planted()
    for full in (False, True):
        got = V.label_model(votes, 3, full=full)
        assert np.allclose(got.accuracy, [0.9, 0.7, 0.55, 0.8], atol=0.04)
        assert np.allclose(got.prior, [0.5, 0.3, 0.2], atol=0.04) and got.rounds < 200
        assert np.allclose(got.confusion.sum(2), 1)
        best = (got.shares.argmax(1) == truth)[got.covered].mean()
        assert best > (V.majority(votes, 3)[1] == truth)[got.covered].mean() + 0.02
    fixed = V.label_model(votes, 3, prior=[1 / 3] * 3)
    assert np.allclose(fixed.prior, 1 / 3)


def test_odd_votes_stay_finite_and_abstaining_is_even():
    for votes in (SEEN, np.full((3, 2), -1), np.zeros((5, 1), int), np.array([[0, 1], [1, 0]])):
        for full, smoothing in itertools.product((False, True), (0.0, 1.0)):
            got = V.label_model(votes, 3, full=full, smoothing=smoothing)
            assert np.isfinite(got.shares).all() and np.allclose(got.shares.sum(1), 1)
            assert np.allclose(got.shares[~got.covered], 1 / 3)
            assert (got.covered == (votes >= 0).any(1)).all()


def test_many_functions_give_what_few_give():
    votes, _ = planted(300)
    wide = np.concatenate([votes, np.full((300, 60), -1)], axis=1)  # too wide for one number a row
    a, b = V.label_model(votes, 3), V.label_model(wide, 3)
    assert np.allclose(a.shares, b.shares) and np.allclose(a.accuracy, b.accuracy[:4])


def test_bad_votes_are_named():
    for votes in (np.zeros(3, int), np.zeros((3, 2)), np.zeros((3, 0), int)):
        with pytest.raises(ValueError, match="whole numbers"):
            V.checked(votes)
    with pytest.raises(ValueError, match="run from -2"):
        V.checked(np.full((2, 2), -2))
    assert V.count_classes(SEEN, None, "x") == 3 and V.count_classes(SEEN, 5, "x") == 5
    for votes, classes, words in (
        (np.full((2, 2), -1), None, "no function"),
        (np.zeros((2, 2), int), None, "classes=2"),
        (SEEN, 2, "highest vote, 2"),
    ):
        with pytest.raises(ValueError, match=words):
            V.count_classes(votes, classes, "x")
