from __future__ import annotations

from typing import Literal

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.greedy import embeddings, facility_location, how_many
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="facility_location",
    title="Facility location",
    family="data/select",
    year=1978,
    tier="core",
    status="stable",
)
class FacilityLocation(Curate):
    """Keep the rows that all others are most like.

    ## What it does

    Greedily maximizes how similar rows are to their nearest kept row:

        f(S) = sum over i of max(0, max over j in S of similarity(i, j))
        next = argmax over j of f(S + j) - f(S)

    The column `facility_location` is the place in the order of choice; any prefix of it is the choice for a smaller budget.

    ## Claim

    Nemhauser, Wolsey and Fisher (1978, "An analysis of approximations for maximizing submodular set functions"): the greedy
    reaches at least 1 - 1/e (63%) of the best value any so many rows have.

    ## Cost

    One embedding pass, then similarities of candidates to all covered rows: each candidate once, and again when it may be
    the next, in all about five times. They are kept where they take at most 2 GiB (20,000 rows: 1.6), else made anew: of
    1 M rows and 20,000 covered 100 G similarities, some minutes of a core, in 8 N D bytes with the rows.

    ## Fields worth tuning

    `cover`, against time. `mode: stochastic` where many rows are kept of many: each choice is the best of a few at random.

    ## Watch out

    A crowd counts by its size, so crowds are represented first and outliers hardly ever; near copies make a crowd, so
    deduplicate before. Similarities below 0 count as 0: embeddings with a large common part make all rows alike.

    ## Differs from the paper

    Gains are computed lazily (Minoux, 1978), which changes nothing in the choice. With more than `cover` rows f is summed
    over as many at random.

    ## See also

    ingenious, k_centre, herding, vote_k, random_rows.
    """

    encoder: Model | None = None
    """Model whose mean-pooled last layer embeds the rows; without it `column` must hold embeddings."""
    column: str = "features"
    """Column of embeddings (N, D), read when there is no `encoder`."""
    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1."""
    metric: Literal["cosine", "euclidean"] = "cosine"
    """Similarity: the cosine, or the largest distance less the distance."""
    mode: Literal["lazy", "exact", "stochastic"] = "lazy"
    """How gains are computed: the first two choose the same rows, "exact" the faster where nearly all rows are kept."""
    cover: int = 20_000
    """Rows that f sums over at most, drawn at random."""

    needs_memory = (
        "rows * (8 * width + 4 * min(rows, cover) * min(1, 2**29 // (max(1, rows) * min(max(1, rows), cover))))"
    )
    null = {"keep": 1.0}
    tiny = {"world": "digits", "keep": 0.1}

    def __call__(self, run: Run, data: Data) -> Data:
        if self.cover < 1:
            raise Bad(f"cover={self.cover}: give the number of rows to cover, at least 1")
        x = embeddings(run, data, self.encoder, self.column, "facility_location")
        some = run.numpy("facility_location", "cover").permutation(len(x))[: self.cover]
        covered = None if len(x) <= self.cover else x[np.sort(some)]
        chosen = facility_location(
            x,
            how_many(self.keep, len(data)),
            mode=self.mode,
            metric=self.metric,
            reference=covered,
            generator=run.rng("facility_location"),
        )[0].numpy()
        place = np.full(len(data), -1, np.int64)
        place[chosen] = np.arange(len(chosen))
        return data.with_(facility_location=place).take(np.sort(chosen))
