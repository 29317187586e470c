from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.nouns import Data
from trainlore.primitives import greedy
from trainlore.primitives.greedy import embeddings, facility_location, herding, k_centre, rank_within
from trainlore.runs import Run


def points(n=30, d=5, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(similarity, count, weights):
    """The plain greedy: every value of every set anew. similarity[i][j]: of the covered row i with candidate j."""
    chosen, gains = [], []

    def value(rows):
        return sum(w * max([0.0] + [s[j] for j in rows]) for w, s in zip(weights, similarity, strict=True))

    for _ in range(count):
        found = [
            (round(value([*chosen, j]) - value(chosen), 9), -j) for j in range(len(similarity[0])) if j not in chosen
        ]
        gain, j = max(found)
        chosen.append(-j)
        gains.append(gain)
    return chosen, gains


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "precomputed"])
@pytest.mark.parametrize("mode", ["lazy", "exact"])
def test_it_is_the_plain_greedy(mode, metric, kept, monkeypatch):
    if not kept:
        monkeypatch.setattr(greedy, "ROOM", 0)
        monkeypatch.setattr(greedy, "BLOCK", 256)
        monkeypatch.setattr(greedy, "WIDTH", 1)
        monkeypatch.setattr(greedy, "SHORT", 4)
    x, y, w = points(), points(20, seed=1), torch.rand(20, generator=torch.Generator().manual_seed(2)).double()
    unit = [torch.nn.functional.normalize(v, dim=1) for v in (x, y)]
    far = max((a - y.mean(0)).norm() for a in x) + max((b - y.mean(0)).norm() for b in y)
    table = far - torch.cdist(y, x) if metric == "euclidean" else unit[1] @ unit[0].T
    given = (table.T, None) if metric == "precomputed" else (x, y)
    for count, weights in ((10, w), (30, None)):
        chosen, gains = facility_location(given[0], count, weights, mode, metric, given[1])
        want = textbook(table.tolist(), count, [1.0] * 20 if weights is None else w.tolist())
        some = [g > 1e-6 for g in want[1]]
        assert np.array(chosen.tolist())[some].tolist() == np.array(want[0])[some].tolist()
        assert np.allclose(gains, want[1], atol=1e-6) and sorted(set(chosen.tolist())) == sorted(chosen.tolist())
        covered = table[:, chosen].amax(1).clamp(min=0)
        assert float(gains.sum()) == pytest.approx(float((covered * (1 if weights is None else w)).sum()), rel=1e-9)


def test_float32_lazy_is_exact_and_copies_gain_nothing():
    x = points(300, 8).float()
    x = torch.cat([x, x[:50]])
    true = facility_location(x.double(), 350, mode="exact")[1].cumsum(0)
    (a, f), (b, g) = facility_location(x, 350, mode="lazy"), facility_location(x, 350, mode="exact")
    assert np.allclose(f.cumsum(0), true, rtol=1e-6) and np.allclose(g.cumsum(0), true, rtol=1e-5)
    assert (a[:60] % 300).tolist() == (b[:60] % 300).tolist()
    assert float(f[300:].max()) < 1e-4 and (np.diff(f) < 1e-4).all()  # what a row adds never grows


@pytest.mark.parametrize("kept", [True, False])
def test_the_short_list_hides_nothing(kept, monkeypatch):
    monkeypatch.setattr(greedy, "ROOM", 1 << 28 if kept else 0)
    monkeypatch.setattr(greedy, "SHORT", 40)
    rng = torch.Generator().manual_seed(0)
    middle, size = torch.randn(60, 12, generator=rng), torch.rand(60, generator=rng)
    of = torch.multinomial(size, 900, replacement=True, generator=rng)
    x = (middle[of] + 0.6 * torch.randn(900, 12, generator=rng)).double()
    w, summed = torch.rand(900, generator=rng).double(), []
    real = greedy._Cover.gains
    monkeypatch.setattr(greedy._Cover, "gains", lambda c, some: summed.append(len(some)) or real(c, some))
    for weights in (None, w):
        (a, f), (b, g) = (facility_location(x, 120, weights, mode) for mode in ("lazy", "exact"))
        assert a.tolist() == b.tolist() and np.allclose(f, g, atol=1e-8)
    assert 0 < sum(summed) < 0.2 * 2 * 120 * 900  # lazy: most gains are not computed again


def test_stochastic_is_near_and_named():
    x = points(400, 6).float()
    best = float(facility_location(x, 20)[1].sum())
    runs = [
        facility_location(x, 20, mode="stochastic", generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1, 2)
    ]
    assert runs[0][0].tolist() == runs[1][0].tolist() != runs[2][0].tolist()
    values = [float(g.sum()) for _, g in runs]
    assert all((1 - 1 / np.e - 0.01) * best < v <= best * (1 + 1e-9) for v in values) and max(values) > 0.97 * best
    every, _ = facility_location(x[:30], 30, mode="stochastic", generator=torch.Generator().manual_seed(0))
    assert sorted(every.tolist()) == list(range(30))


def test_k_centre_takes_the_farthest_and_halves_the_best_radius():
    x = points(50, 3)
    apart = torch.cdist(x, x)
    chosen, radii = k_centre(x, 10, first=7)
    assert chosen[0] == 7 and radii[0] == torch.inf
    for t in range(1, 10):
        near = apart[:, chosen[:t]].amin(1)
        assert near.argmax() == chosen[t] and radii[t] == pytest.approx(float(near.max()))
    some, _ = k_centre(x, 10, first=chosen[:4])
    assert some.tolist() == chosen.tolist()
    assert sorted(k_centre(torch.ones(5, 2), 5)[0].tolist()) == [0, 1, 2, 3, 4]
    unit, _ = k_centre(x, 5, 0, "cosine")
    assert unit.tolist() == k_centre(torch.nn.functional.normalize(x, dim=1), 5)[0].tolist()


def test_herding_keeps_the_mean():
    x = points(40, 4)
    chosen, apart = herding(x, 12)
    for t in range(12):
        others = [j for j in range(40) if j not in chosen[:t].tolist()]
        found = [float((x.mean(0) - x[[*chosen[:t].tolist(), j]].mean(0)).norm()) for j in others]
        assert others[int(np.argmin(found))] == chosen[t] and apart[t] == pytest.approx(min(found))
    unit = torch.nn.functional.normalize(x, dim=1)
    w, sums = unit.mean(0), torch.zeros(4, dtype=torch.float64)
    assert herding(x, 1, "cosine")[0].item() == int((unit @ (w - sums)).argmax())
    assert float(herding(x, 40)[1][-1]) == pytest.approx(0, abs=1e-12)


def test_vectors_that_are_not_finite_are_named():
    x = points(4).float().numpy()
    assert np.array_equal(embeddings(Run(0), Data.of({"features": x}), None, "features", "me"), x)
    x[1, 2], x[3, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="me: column='features' .* not finite for 2 of 4 rows"):
        embeddings(Run(0), Data.of({"features": x}), None, "features", "me")


def test_ranks_and_bad_input():
    rank, size = rank_within(np.array([0, 1, 0, 1, 0]), np.array([1.0, 5.0, 3.0, 5.0, 2.0]))
    assert rank.tolist() == [2, 0, 0, 1, 1] and size.tolist() == [3, 2, 3, 2, 3]
    x = points(5)
    for call, said in (
        (lambda: facility_location(x, 6), "count=6"),
        (lambda: facility_location(x, 0), "count=0"),
        (lambda: facility_location(x[:, 0], 1), r"got \(5,\)"),
        (lambda: facility_location(x, 2, mode="eager"), "mode='eager'"),
        (lambda: facility_location(x, 2, metric="dot"), "metric='dot'"),
        (lambda: facility_location(x, 2, mode="stochastic"), "generator"),
        (lambda: facility_location(x, 2, -torch.ones(5)), "weights"),
        (lambda: k_centre(x, 6), "count=6"),
        (lambda: k_centre(x, 1, [0, 1]), "the 2 to begin with"),
        (lambda: k_centre(x, 2, 0, "dot"), "metric='dot'"),
        (lambda: herding(x, 0), "count=0"),
        (lambda: herding(x, 1, "dot"), "metric='dot'"),
    ):
        with pytest.raises(ValueError, match=said):
            call()
