from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.uncertainty import dropout_shares, mutual_information, ready
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="bald",
    title="Bayesian active learning by disagreement (BALD)",
    paper="arXiv:2006.09916",
    lit="p489",
    family="data/active",
    year=2020,
    tier="core",
    status="stable",
    code="baal-org/baal",
)
class BALD(Curate):
    """Pick the rows on which networks sampled by dropout disagree most.

    ## What it does
    Runs the pool through `draws` networks, each with other units dropped, and picks the `count` rows whose label would
    tell most of which network is right:

        score(x) = H( mean_t p_t(x) ) - mean_t H( p_t(x) )

    A row is high where every network is sure and they contradict each other; a row that all find ambiguous is low,
    unlike under `uncertainty`. The column `bald` holds the score of the rows picked, which stay in the order of the
    pool.

    ## Claim
    The study behind BaaL: scoring a random part of the pool and asking for larger batches shorten the loop at little or
    no cost of accuracy, also with label noise, imbalance and networks trained briefly. BaaL's guide: below 1,000 rows a
    batch.

    ## Cost
    `draws` passes over the rows scored. Memory: draws x rows x classes x 8 bytes, 1.6 GB for 20 draws, 10 classes, 1 M
    rows.

    ## Fields worth tuning
    `rows` for large pools; `draws` (BaaL's examples use 20).

    ## Watch out
    The `count` highest are scored one by one and may all say the same: `batch_bald` looks at them together. Dropout
    layers that a network calls as functions (attention of many language models) are not seen. Needs a network trained
    with dropout for its disagreement to mean doubt; `dropout` on one that was not is a stopgap. Here, on digits, it was
    no better than random rows: +2.2 points with 40 labels after 150 steps a round (n = 10, p = 0.21), -4.6 with 50 (n =
    8, p = 0.12), and 0.50 against 0.72 with 60 labels after 60 steps (n = 8, p = 0.02): a network trained briefly is in
    two minds about one class and asks for that alone, at first nothing but ones. `uncertainty` gained 8 points.

    ## Differs from the paper
    A draw is one network for all rows, where BaaL draws for each row anew: the score is the same on average, with
    errors that rows share. One of the study's scores (its library has entropy, variance and others).

    ## See also
    `batch_bald`, `uncertainty`.
    """

    model: Model | None = None
    """The network of now."""
    count: int = 10
    """Rows to pick."""
    draws: int = 20
    """Networks to compare."""
    dropout: float | None = None
    """Rate at which to drop; none: the network's own."""
    rows: int | None = None
    """How many rows of the pool to score, drawn at random; none: all."""

    null = None  # any number of rows is a choice
    tiny = {"world": "digits", "model": "$model", "dropout": 0.25, "draws": 5}

    def __call__(self, run: Run, data: Data) -> Data:
        model = ready("bald", self.model, self.count, data)
        if self.rows is not None:
            if self.rows < self.count:
                raise Bad(
                    f"rows={self.rows} must be at least count={self.count}: the rows picked are among those scored"
                )
            data = data.take(np.sort(run.numpy("bald").permutation(len(data))[: self.rows]))
        score = mutual_information(dropout_shares(run, model, data, self.draws, self.dropout)).numpy()
        top = np.argsort(-score, kind="stable")[: self.count]
        return data.with_(bald=score).take(np.sort(top))
