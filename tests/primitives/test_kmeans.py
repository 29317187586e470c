import numpy as np
import pytest

from trainlore.primitives import kmeans
from trainlore.primitives.kmeans import k_means


def blobs(rows=600, k=5, seed=0):
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(k, 8)) * 20 + 1000
    of = rng.integers(0, k, rows)
    return of, (middle[of] + rng.normal(size=(rows, 8))).astype(np.float32)


def spread(x, label, centres):
    return float(((x.astype(np.float64) - centres[label]) ** 2).sum(1).mean())


@pytest.mark.parametrize("sample", [256, 8])
def test_blobs_are_found_wherever_they_lie(monkeypatch, sample):
    monkeypatch.setattr(kmeans, "SAMPLE", sample)
    of, x = blobs()
    label, centres = k_means(x, 5, np.random.default_rng(0))
    assert len({(a, b) for a, b in zip(of.tolist(), label.tolist(), strict=True)}) == 5
    for j in range(5):
        assert np.allclose(centres[j], x[label == j].mean(0), atol=2e-3)


def test_as_good_as_scikit_learn_on_rows_without_clusters():
    from sklearn.cluster import KMeans

    x = np.random.default_rng(1).normal(size=(3000, 16)).astype(np.float32)
    theirs = KMeans(20, n_init=1, random_state=0).fit(x).inertia_ / len(x)
    label, centres = k_means(x, 20, np.random.default_rng(0))
    assert spread(x, label, centres) < 1.01 * theirs
    assert np.array_equal(label, ((x[:, None] - centres[None]) ** 2).sum(2).argmin(1))
    assert np.array_equal(label, k_means(x, 20, np.random.default_rng(0))[0])


def test_few_different_rows_and_as_many_clusters_as_rows():
    x = np.repeat(np.eye(3, dtype=np.float32), 4, 0)
    label, centres = k_means(x, 5, np.random.default_rng(0))
    assert np.isfinite(centres).all() and spread(x, label, centres) < 1e-9
    label, _ = k_means(x[::4], 3, np.random.default_rng(0))
    assert sorted(label.tolist()) == [0, 1, 2]
    for k in (0, 13):
        with pytest.raises(ValueError, match=f"clusters={k}: give 1 to 12"):
            k_means(x, k, np.random.default_rng(0))
