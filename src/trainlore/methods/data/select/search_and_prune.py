from __future__ import annotations

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.domains import domain_means, domains
from trainlore.primitives.greedy import embeddings, how_many, k_centre
from trainlore.primitives.kmeans import k_means
from trainlore.runs import Run
from trainlore.verbs import Curate, method

Spread = tuple[np.ndarray, np.ndarray]


def spread(points: np.ndarray) -> Spread:
    """Mean (D,) and a root R (min(N, D), D) of the covariance R'R of points (N, D), float64; of one point no spread."""
    points = points.astype(np.float64)
    mean = points.mean(0)
    return mean, np.linalg.qr((points - mean) / np.sqrt(max(1, len(points) - 1)), mode="r")


def frechet(first: Spread, second: Spread) -> float:
    """|mu_1 - mu_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^1/2): the squared Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the singular values of R_1 R_2', which needs no root of a product."""
    (m, r), (n, s) = first, second
    cross = np.linalg.svd(r @ s.T, compute_uv=False).sum()
    return float(np.square(m - n).sum() + np.square(r).sum() + np.square(s).sum() - 2 * cross)


def search(
    points: np.ndarray, cluster: np.ndarray, target: np.ndarray, least: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters that together are nearest to the target, int64 (C',), and the distance of each alone, float64 (C,).

    Clusters are joined from near to far, and the join of least distance among those of `least` rows or more is taken; of a
    join of more rows than the target has, as many are drawn at random for the comparison.
    points: (N, D); cluster: (N,) from 0, each with rows; target: (M, D)."""
    wanted = spread(target)
    alone = np.array([frechet(spread(points[cluster == c]), wanted) for c in range(cluster.max() + 1)])
    order, best, found = np.argsort(alone, kind="stable"), np.inf, 0
    for k in range(1, len(order) + 1):
        rows = np.flatnonzero(np.isin(cluster, order[:k]))
        if len(rows) < least:
            continue
        some = rows if len(rows) <= len(target) else rng.choice(rows, len(target), replace=False)
        if (distance := frechet(spread(points[some]), wanted)) < best:
            best, found = distance, k
    return order[:found], alone


@method(
    name="search_and_prune",
    title="SnP (search and pruning)",
    paper="arXiv:2303.16186",
    lit="p491",
    family="data/select",
    year=2023,
    tier="modality",
    status="stable",
    code="yorkeyao/SnP",
)
class SearchAndPrune(Curate):
    """Keep the clusters of a pool that together are spread like a target, thinned to far-apart rows.

    ## What it does
    Search: the identities of the pool (rows that agree in `group`) are cut by k-means of their mean embeddings. Clusters
    are joined from the nearest to the target on, and the join nearest to it is taken:

        FD(A, B) = |mu_A - mu_B|^2 + tr(C_A + C_B - 2 (C_A C_B)^1/2)

    Pruning: of the identities found a share is drawn at random, one row of each is kept, and then the row farthest from all
    kept ones, until the budget is spent. The column `search_and_prune` is the distance of a row's cluster.

    ## Claim
    Re-identification of persons and vehicles with a target without labels: a training set 80% smaller than the pool is as
    accurate as all of it or better, and better than random or greedy choices of one size.

    ## Cost
    An embedding pass over pool and target, k-means, and for each cluster twice min(rows, target) x dimensions^2; then rows
    found x kept rows x dimensions.

    ## Fields worth tuning
    `clusters`: enough that one can be of one kind; `identities` trades many with few rows against few with many.

    ## Watch out
    The distance looks at embeddings only, so labels that the target lacks may be kept and rare ones lost.
    Distances of clusters with fewer rows than dimensions are biased upwards: embed into few dimensions, or take fewer clusters.

    ## Differs from the paper
    k-means where the authors' code forces clusters of one size. The authors keep the nearest join whatever its size; here it has at
    least the rows of the budget. In their code farthest-first begins at an arbitrary row, as it is given no start; here from
    the row kept of each identity, which the paper's text suggests. Without `group` nothing is reserved, and pruning
    begins at the row nearest to the target's mean.

    ## See also
    dsir (for text), k_centre, random_rows.
    """

    target: Data
    """Rows of the target; labels are not looked at."""
    encoder: Model | None = None
    """Model whose mean-pooled last layer embeds the rows; without it `column` must hold embeddings."""
    column: str = "features"
    """Column of embeddings (N, D) in pool and target, read when there is no `encoder`."""
    group: str | None = None
    """Column of the identities; None: every row is its own."""
    clusters: int = 50
    """Number of clusters of identities; fewer when there are fewer identities."""
    keep: float = 0.2
    """Share of the rows to keep, above 0 and at most 1."""
    identities: float = 1.0
    """Share of the identities found that is kept, above 0 and at most 1."""

    needs_memory = "rows * width * 20"
    null = {"keep": 1.0}
    tiny = {"world": "digits", "target": "$spare", "group": "label", "clusters": 5, "keep": 0.2}

    def __call__(self, run: Run, data: Data) -> Data:
        x = embeddings(run, data, self.encoder, self.column, "search_and_prune").numpy()
        y = embeddings(run, self.target, self.encoder, self.column, "search_and_prune's `target`").numpy()
        if self.clusters < 1 or not 0 < self.identities <= 1:
            said = f"clusters={self.clusters}, identities={self.identities}"
            raise Bad(f"search_and_prune: {said}: give clusters of at least 1 and identities above 0 and at most 1")
        if x.shape[1] != y.shape[1]:
            raise Bad(
                f"search_and_prune: rows have {x.shape[1]} numbers and the `target` {y.shape[1]}: embed both alike"
            )
        who = np.arange(len(data)) if self.group is None else domains(data, self.group, "search_and_prune")[1]
        first = np.unique(who, return_index=True)[1]
        rng, count = run.numpy("search_and_prune"), how_many(self.keep, len(data))
        means = domain_means(torch.from_numpy(x), torch.from_numpy(who), len(first))
        _, of_group = np.unique(k_means(means.numpy(), min(self.clusters, len(first)), rng)[0], return_inverse=True)
        near, distance = search(x, of_group[who], y, count, rng)
        found = np.flatnonzero(np.isin(of_group, near))
        found = np.sort(rng.choice(found, how_many(self.identities, len(found)), replace=False))
        rows = np.flatnonzero(np.isin(who, found))
        middle = np.linalg.norm(x[rows] - y.mean(0), axis=1).argmin()
        start = rows[[middle]] if self.group is None else first[found]
        if not len(start) <= count <= len(rows):
            raise Bad(
                f"keep={self.keep} is {count} rows, and the {len(found)} identities found have {len(rows)}: "
                + ("lower identities" if count < len(start) else "raise identities")
            )
        begin = torch.from_numpy(np.searchsorted(rows, start))
        chosen = rows[k_centre(torch.from_numpy(x[rows]), count, begin)[0].numpy()]
        return data.with_(search_and_prune=distance[of_group[who]]).take(np.sort(chosen))
