from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives import edits
from trainlore.runs import Run
from trainlore.verbs import Fit, Part, method


def both_ways(data: Data) -> Data:
    """The rows and, after them, the same rows with prompt and completion exchanged (`augmented` 1)."""
    turned = {"prompt": list(data.text("completion")), "completion": list(data.text("prompt"))}
    return edits.added(data, turned, np.arange(len(data)))


@method(
    name="bidirectional_training",
    title="BiT (bidirectional training)",
    paper="arXiv:2109.07780",
    lit="p369",
    family="data/augment",
    year=2021,
    tier="core",
    status="stable",
)
class BidirectionalTraining(Fit):
    """Train on the pairs in both directions first, then in the wanted one, at the same number of steps.

    ## What it does
    The first `share` of the steps reads every pair (x, y) also as (y, x), with one vocabulary and no mark of the direction; the
    rest reads (x, y) alone.

        steps 1 .. share * T:   log p(y | x) + log p(x | y)          then:   log p(y | x)

    ## Claim
    Better translation in 15 tasks over 8 pairs of languages with 160 thousand to 38 million pairs, without more weights or
    steps; it adds to back-translation, distillation and diversification.

    ## Cost
    None: the steps are shared out. Twice the rows while the first stage lasts.

    ## Fields worth tuning
    `share`: a third in the paper.

    ## Watch out
    For tasks whose answer says something of the question, as translations do. The two stages are trainings of their own: the
    optimizer starts anew in the second, and so does each part in `inner`, warm-up included. What is learned nearly to the end
    misses the steps: on a cipher of digits with 60 or 300 pairs the loss was higher (300 pairs: 0.44 against 0.10 nats after 90
    steps, n = 4). With 30 pairs it scatters widely: not reproduced here.

    ## Differs from the paper
    Any model that reads prompt and completion will do, there an encoder-decoder.

    ## See also
    `ul2` mixes directions of another kind: where in a text the hidden words are.
    """

    share: float = 1 / 3
    """Share of the steps that train in both directions; 0 is training as usual."""
    inner: tuple[Part, ...] = ()
    """Parts of both stages."""
    steps: int = 300
    """Steps of both stages together."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate of both stages."""

    null = {"share": 0.0}
    tiny = {"world": "sums", "steps": 9, "lr": 3e-3}

    def __call__(self, run: Run, model: Model, data: Data) -> Model:
        if not 0 <= self.share < 1:
            raise Bad(f"share={self.share}: of the steps, at least 0 and below 1")
        if self.steps < 1:
            raise Bad(f"steps={self.steps}: at least 1")
        data.need("prompt", "completion", who="bidirectional_training")
        first, how = round(self.share * self.steps), {"batch_size": self.batch_size, "lr": self.lr}
        if first == self.steps:
            raise Bad(f"share={self.share} of {self.steps} steps leaves none for the wanted direction: raise steps")
        if first:
            model = run.fit(model, both_ways(data), *self.inner, steps=first, **how)
        return run.fit(model, data, *self.inner, steps=self.steps - first, **how)
