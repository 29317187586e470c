from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.uncertainty import entropy, least_confidence, margin, predicted, ready
from trainlore.runs import Run
from trainlore.verbs import Curate, method

MEASURES = {
    "entropy": entropy,
    "margin": lambda shares: 1 - margin(shares),
    "least_confidence": least_confidence,
}


@method(
    name="uncertainty",
    title="Uncertainty sampling",
    family="data/active",
    year=1994,
    tier="core",
    status="stable",
)
class Uncertainty(Curate):
    """Pick the rows that the network is least sure about.

    ## What it does
    Scores every row by the network's class shares p and picks the `count` highest:

        entropy            -sum_k p_k log p_k
        margin             1 - (p_(1) - p_(2)), the two likeliest classes
        least_confidence   1 - p_(1)

    The column `uncertainty` holds the score of the rows picked, which stay in the order of the pool.

    ## Claim
    Fewer labels than random rows for the same accuracy; the baseline of every other way to ask. With two classes the
    three orders are one and the same.

    ## Cost
    A pass over the pool.

    ## Fields worth tuning
    `by`: `margin` (also called breaking ties) looks only at the two classes in doubt and is the safer of the three with
    many classes.

    ## Watch out
    Rows are scored one by one: a batch may be ten times the same row. Networks are surest where they should not be, far
    from the data; and rows nobody can label are asked for first.

    ## See also
    `random_rows` (the rival), `bald`, `batch_bald`, `pcoreset`.
    """

    model: Model | None = None
    """The network of now."""
    count: int = 10
    """Rows to pick."""
    by: str = "margin"
    """entropy, margin or least_confidence."""

    null = None  # any number of rows is a choice
    tiny = {"world": "digits", "model": "$model"}

    def __call__(self, run: Run, data: Data) -> Data:
        model = ready("uncertainty", self.model, self.count, data)
        if self.by not in MEASURES:
            raise Bad(f"by={self.by!r} is no measure: give {', '.join(MEASURES)}")
        score = MEASURES[self.by](predicted(run, model, data)).numpy()
        top = np.argsort(-score, kind="stable")[: self.count]
        return data.with_(uncertainty=score).take(np.sort(top))
