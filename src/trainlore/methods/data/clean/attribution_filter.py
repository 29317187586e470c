from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_budget
from trainlore.primitives.gradients import gradient_sum, row_dots, row_norms
from trainlore.runs import Run, readable
from trainlore.verbs import Curate, method


def direction(run: Run, model: Model, targets: Data, layers: str | None, cosine: bool) -> Tensor:
    """The mean of the targets' gradients (P,), each of length 1 for cosines.

    The mean over targets of a row's cosine (or product) with each is its own with this one direction: no gradient is
    stored, whatever the number of targets.
    """
    share = torch.full((len(targets),), 1 / len(targets))
    if cosine:
        share = share / row_norms(run, model, targets, layers).clamp(min=1e-12)
    return gradient_sum(run, model, targets, share, layers)


@method(
    name="attribution_filter",
    title="DABUF (filtering unsafe rows by data attribution)",
    paper="arXiv:2502.11411",
    lit="p152",
    family="data/clean",
    year=2025,
    tier="core",
    status="stable",
)
class AttributionFilter(Curate):
    """Remove the rows whose gradients teach a model what it must not do.

    ## What it does
    Takes a model that was trained on the rows and misbehaves, and a few examples T of the misbehaviour (its own bad
    outputs, or training rows known to be unsafe). A row's score is how much its gradient is like theirs, and the
    highest-scoring share is removed; with `safe` examples S, likeness to those counts against.

        score(z) = mean over t in T of cos(g(z), g(t))  -  mean over s in S of cos(g(z), g(s))

    The column `attribution` holds the score; the rows removed stay reachable by `data.dropped()`.

    ## Claim
    Finding jailbreaking rows and gender-biased rows planted in the training data of language models: area under the
    precision-recall curve up to 7.5% and 44.1% higher than moderation classifiers, and safer models after training
    without them.

    ## Cost
    A forward and a backward a row for its length, and a forward-mode pass (as much again) for its product with one
    direction, exact and with no gradient stored; targets cost two forwards and backwards each.

    ## Fields worth tuning
    The targets, most of all. Long outputs mix what is unsafe with plain language and blur the direction: short ones, or
    rows that a moderation classifier is sure of, make better targets. `remove` when the share of unsafe rows is known.

    ## Watch out
    It removes its share whether or not anything is unsafe: look at the scores. The model must have been trained on the
    rows but not to the end, where a row it has learned by heart has no gradient left to compare.

    ## Differs from the paper
    Only the abstract could be read: gradient similarity is what it says, the cosine and its mean over targets are ours.
    Its moderation classifier that narrows the targets is left to the user. The later version, which first whitens the
    representations, is not here.

    ## See also
    `influence_scores` and `aum` (wrong labels without a target), `dsir` (likeness of text).
    """

    model: Model
    """A model trained on the rows, which shows the unwanted behaviour."""
    unsafe: Data
    """A few examples of it: bad outputs, or rows known to be unsafe."""
    safe: Data | None = None
    """Examples of wanted behaviour, to tell what all rows have in common from what is unsafe."""
    remove: float = 0.05
    """Share of the rows to remove, at least 0 and below 1."""
    cosine: bool = True
    """Compare directions; without it long gradients count more, as in first-order influence."""
    layers: str | None = None
    """Only weights whose name contains this: `lm_head`, an adapter's."""

    null = {"remove": 0.0}
    tiny = {"world": "text", "model": "$prior", "unsafe": "$target", "safe": "$held_out", "remove": 0.25}

    def __call__(self, run: Run, data: Data) -> Data:
        if not 0 <= self.remove < 1:
            raise Bad(f"remove={self.remove} must be at least 0 and below 1: it is a share of the rows")
        rows = readable(self.model, data, who="attribution_filter", losses=True)
        unsafe = readable(self.model, self.unsafe, who="attribution_filter's unsafe examples", losses=True)
        how = (self.layers, self.cosine)
        along = direction(run, self.model, unsafe, *how)
        if self.safe is not None:
            safe = readable(self.model, self.safe, who="attribution_filter's safe examples", losses=True)
            along = along - direction(run, self.model, safe, *how)
        score = row_dots(run, self.model, rows, along, self.layers)
        if self.cosine:
            score = score / row_norms(run, self.model, rows, self.layers).clamp(min=1e-12)
        found = score.double().numpy()
        return data.with_(attribution=found).take(take_budget(-found, 1 - self.remove))
