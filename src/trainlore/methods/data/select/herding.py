from __future__ import annotations

from typing import Literal

import numpy as np

from trainlore.nouns import Data, Model
from trainlore.primitives.domains import domains
from trainlore.primitives.greedy import embeddings, herding, how_many
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(name="herding", title="Herding", family="data/select", year=2009, tier="core", status="stable")
class Herding(Curate):
    """Keep rows whose mean embedding is that of all rows.

    ## What it does

    Adds one row at a time, the one with which the mean of the kept rows comes nearest to the mean mu of all:

        next = argmin over x of || mu - (sum of S + x) / t ||,    t = |S| + 1

    Among rows of one length that is herding, argmax <w, x> with w = t mu - sum of S. The column `herding` is the place in
    the order of choice.

    ## Claim

    Welling (2009, "Herding dynamical weights to learn"): averages over the chosen rows approach those over all rows at rate
    1/t, where random rows approach them at 1/sqrt(t). Rebuffi and others (2017, "iCaRL") keep rows of old classes so.

    ## Cost

    One embedding pass, then rows x kept rows x dimensions; one number a row.

    ## Fields worth tuning

    `by`, where classes should keep their shares exactly.

    ## Watch out

    Only the mean of the embeddings is matched: the kept rows crowd around it, and rare kinds of rows are dropped unless they
    move it. With identical vectors of opposite sign in equal numbers, two rows match it perfectly.

    ## Differs from the paper

    Welling's herding may choose a row again and again; here, as in iCaRL, each row once.

    ## See also

    k_centre, facility_location, random_rows.
    """

    encoder: Model | None = None
    """Model whose mean-pooled last layer embeds the rows; without it `column` must hold embeddings."""
    column: str = "features"
    """Column of embeddings (N, D), read when there is no `encoder`."""
    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1."""
    by: str | None = None
    """Column of groups (classes, domains), each of which keeps its share and its own mean; None: all rows together."""
    metric: Literal["euclidean", "cosine"] = "euclidean"
    """The embeddings as they are, or scaled to length 1."""

    needs_memory = "rows * width * 16"
    null = {"keep": 1.0}
    tiny = {"world": "digits", "keep": 0.1}

    def __call__(self, run: Run, data: Data) -> Data:
        x = embeddings(run, data, self.encoder, self.column, "herding")
        group = np.zeros(len(data), np.int64) if self.by is None else domains(data, self.by, "herding")[1]
        size = np.bincount(group)
        total = how_many(self.keep, len(data))
        exact = total * size / len(data)  # whole rows by largest remainder, so that the budget is met
        count = np.floor(exact).astype(np.int64)
        count[np.argsort(count - exact, kind="stable")[: total - count.sum()]] += 1
        place = np.full(len(data), -1, np.int64)
        for g in np.flatnonzero(count):
            rows = np.flatnonzero(group == g)
            place[rows[herding(x[rows], int(count[g]), self.metric)[0].numpy()]] = np.arange(count[g])
        return data.with_(herding=place).take(np.flatnonzero(place >= 0))
