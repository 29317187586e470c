from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.greedy import embeddings
from trainlore.primitives.neighbours import nearest
from trainlore.runs import Run
from trainlore.verbs import Curate, method

BLOCK, ROWS = 1024, 1000  # rows compared at a time; rows of a cluster, where their number is not given


def leaders(points: Tensor, threshold: float, block: int = BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """For each point a kept one before it that it is alike, int64 (N,), -1 if it is kept itself; and their cosine (N,).

    points (N, D) of length 1. They are taken in order, and one is dropped whose cosine with a kept one is at least
    `threshold`: never for being alike a point that is itself gone. Costs N times the number kept, not N times N.
    """
    n, kept = len(points), torch.zeros(0, dtype=torch.long)
    leader, cosine = torch.full((n,), -1), torch.full((n,), torch.nan)
    for at in range(0, n, block):
        new = torch.arange(at, min(n, at + block))
        if len(kept):
            best, which = (v[:, 0] for v in nearest(points[new], 1, points[kept]))
            alike = best >= threshold
            leader[new[alike]], cosine[new[alike]] = kept[which[alike]], best[alike]
            new = new[~alike]
        if not len(new):
            continue
        near = (points[new] @ points[new].T).triu(1)  # row i before column j
        alike, was, stays = (near >= threshold).float(), None, torch.ones(len(new))
        while was is None or not torch.equal(was, stays):  # ends where taking them one by one ends, in fewer rounds
            was, stays = stays, (stays @ alike == 0).float()
        gone = stays == 0
        best, which = torch.where(stays[:, None] > 0, near, -2.0).max(0)
        leader[new[gone]], cosine[new[gone]] = new[which[gone]], best[gone]
        kept = torch.cat([kept, new[~gone]])
    return leader.numpy(), cosine.clamp(max=1.0).numpy()


def same(points: np.ndarray) -> np.ndarray:
    """Position of the first point with the very same numbers, int64 (N,), of points (N, D)."""
    flat = np.ascontiguousarray(points)
    whole = flat.view(np.dtype((np.void, flat.itemsize * flat.shape[1])))[:, 0]
    _, first, kind = np.unique(whole, return_index=True, return_inverse=True)
    return first[kind.reshape(-1)]


@method(
    name="embedding_duplicates",
    title="SemDeDup (semantic deduplication)",
    paper="arXiv:2303.09540",
    family="data/clean",
    year=2023,
    tier="core",
    status="stable",
    code="facebookresearch/SemDeDup",
)
class EmbeddingDuplicates(Curate):
    """Drop every row whose embedding is nearly that of a row that is kept.

    ## What it does
    Rows are embedded, cut into clusters by k-means on the sphere, and taken one by one within each cluster, by default
    those far from its centre first:

        row j is dropped  iff  cos(e_i, e_j) >= threshold for some kept i taken before it in its cluster

    `alike` is the id of the kept row that a dropped one is alike (-1 for kept rows), `alike_cosine` how much (NaN).

    ## Claim
    LAION: half of the image-text pairs can go with hardly a loss in zero-shot accuracy, at half the time of training,
    and with a gain out of distribution. C4: better than removal of near copies of the text.

    ## Cost
    One embedding pass with an `encoder`, k-means, and rows x kept rows of a cluster; a million copies of one row cost a
    sort. Memory: 16 x D bytes a row, 12 GiB for a million rows of 768.

    ## Fields worth tuning
    `threshold`, by how many rows shall stay, as in the paper; more `clusters` (there 50,000 for LAION) miss more pairs.

    ## Watch out
    Pairs in different clusters are not seen, and k-means cuts up a dense crowd: of a million rows all nearly the same
    one a cluster stays; run it again on what is left. What "alike" means is the encoder's affair: mean-pooled hidden
    states of a language model all point much the same way: 0.95 may be nearly everything. Rows of zeros are kept.

    ## Differs from the paper
    There a row goes if it is alike any row before it, even one that is gone, so that a chain of small steps can take
    away all but its end; here each dropped row is alike a kept one. K-means is by mini-batches.

    ## See also
    `near_duplicates` and `exact_duplicates` for text, which are cheaper and should run first.
    """

    encoder: Model | None = None
    """Model whose mean-pooled last layer embeds the rows; without it `column` must hold embeddings."""
    column: str = "features"
    """Column of embeddings (N, D), read when there is no `encoder`."""
    threshold: float = 0.95
    """Least cosine that makes two rows duplicates."""
    clusters: int | None = None
    """Number of clusters; none: one for each thousand different rows."""
    first: Literal["far", "near", "table"] = "far"
    """Which rows of a cluster are taken first, and so stay: far from or near to its centre, or in table order."""

    needs_memory = "rows * width * 20"
    null = {"threshold": 2.0}
    tiny = {"world": "digits", "clusters": 4, "threshold": 0.95}

    def __call__(self, run: Run, data: Data) -> Data:
        few = self.clusters is not None and self.clusters < 1
        if not self.threshold > 0 or few or self.first not in ("far", "near", "table"):
            said = f"threshold={self.threshold}, clusters={self.clusters}, first={self.first!r}"
            raise Bad(f"{said}: give a cosine above 0, at least 1 cluster, and far, near or table")
        x = embeddings(run, data, self.encoder, self.column, "embedding_duplicates")
        x = torch.nn.functional.normalize(x, dim=1)
        leader, cosine = np.full(len(data), -1), np.full(len(data), np.nan)
        some = np.flatnonzero(x.any(1).numpy()) if self.threshold <= 1 else np.arange(0)
        if len(some):
            copy = some[same(x[some].numpy())]
            one = some[copy == some]  # the first of each kind, in table order
            cluster, centre = self._clusters(run, x[one])
            by = {"table": np.arange(len(one)), "near": -centre, "far": centre}[self.first]
            order = np.lexsort((by, cluster))
            for part in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
                found, how = leaders(x[one[part]], self.threshold)
                leader[one[part]] = np.where(found < 0, -1, one[part][found])
                cosine[one[part]] = how
            again, origin = some[copy != some], copy[copy != some]
            leader[again] = np.where(leader[origin] < 0, origin, leader[origin])
            cosine[again] = np.where(leader[origin] < 0, 1.0, cosine[origin])
        return data.with_(alike=np.where(leader < 0, -1, data.ids[leader]), alike_cosine=cosine).where(leader < 0)

    def _clusters(self, run: Run, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """The cluster of each point (N,) and its cosine with the centre (N,), of points x (N, D) of length 1."""
        k = max(1, len(x) // ROWS) if self.clusters is None else min(self.clusters, len(x))
        if k == 1:
            return np.zeros(len(x), np.int64), (x @ x.mean(0)).numpy()
        from sklearn.cluster import MiniBatchKMeans

        seed = int(run.numpy("embedding_duplicates").integers(2**31))
        fitted = MiniBatchKMeans(k, n_init=1, batch_size=4096, random_state=seed).fit(x.numpy())
        cluster, centres = fitted.labels_.astype(np.int64), torch.from_numpy(fitted.cluster_centers_).float()
        return cluster, torch.linalg.vecdot(x, torch.nn.functional.normalize(centres, dim=1)[cluster]).numpy()
