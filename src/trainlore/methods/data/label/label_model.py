from __future__ import annotations

from typing import Literal

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives.votes import count_classes, label_model, labelled, votes_of
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="label_model",
    title="Dawid-Skene label model",
    paper="arXiv:1310.5764",
    family="data/label",
    year=2013,
    tier="core",
    status="stable",
)
class LabelModel(Curate):
    """Learn how often each labelling function is right from their votes alone, and weigh them by it.

    ## What it does
    Takes the true class as hidden and the functions as independent given it, and finds by EM, starting from the
    majority, the accuracies and class shares under which the votes are likeliest:

        P(class k | votes) ~ prior_k * prod_{f votes} P(vote_f | k)
        one coin: P(k | k) = a_f,  P(l | k) = (1 - a_f) / (K - 1)          full: P(l | k) free

    Writes `label`, `shares` and `confidence` as `majority_vote` does.

    ## Claim
    For the Dawid-Skene estimator by projected EM: the error falls at an exponential rate whose exponent no estimator
    can better. A comparison with majority vote shows advantages and pitfalls.

    ## Cost
    Rounds x distinct patterns of votes x functions x classes; a million rows of few patterns are cheap. Memory: about
    24 bytes a pattern and class, and 8 bytes a row and class for the shares (10 GB at a million rows of 1,280 classes).

    ## Fields worth tuning
    `table="full"` where functions confuse some classes and there are votes enough to tell (K x K numbers a function).

    ## Watch out
    Accuracies need three functions that overlap: with two the data cannot tell who is right and you get the majority.
    Functions that err together look right together; one that is copied thrice wins. Where most are worse than chance
    the classes swap. Functions that vote for a single class and abstain otherwise tell little of their accuracy:
    whether one abstains is not looked at. `confidence` is too high where functions are not independent: on digits with
    eight weak classifiers of a few pixels each (20 seeds) accuracies over the covered rows were 0.73 by majority, 0.74
    by one coin and 0.78 by full tables, at mean confidences of 0.69, 0.92 and 0.97. Our claim is of full tables, picked
    after a look at both on other seeds.

    ## Differs from the paper
    Smoothing by one imaginary vote a function; abstaining (which Dawid and Skene treat as missing) needs no model. The
    paper projects accuracies away from 0 and 1, which smoothing does here.

    ## See also
    `majority_vote` (its rival), `label_flows`, `vote_table`.
    """

    classes: int | None = None
    """Number of classes; none: the highest vote and one."""
    table: Literal["one_coin", "full"] = "one_coin"
    """One accuracy a function, or what it says of each class."""
    prior: tuple[float, ...] = ()
    """Known share of each class; none: learned."""
    rounds: int = 200
    """The most rounds of EM."""
    smoothing: float = 1.0
    """Imaginary votes a function, spread evenly over what it may say."""
    uncovered: Literal["drop", "keep"] = "drop"
    """What becomes of rows on which all functions abstain."""
    labeller: Curate | None = None
    """Step that makes the votes of data without them."""

    tiny = {
        "world": "text",
        "labeller": {
            "label_votes": {
                "rules": [{"label": 0, "if": "bada"}, {"label": 1, "if": "k[aeio]m"}, {"label": 0, "if": "^t"}]
            }
        },
    }

    def __call__(self, run: Run, data: Data) -> Data:
        if self.rounds < 1 or self.smoothing < 0:
            raise Bad(f"rounds={self.rounds}, smoothing={self.smoothing}: give at least 1 and at least 0")
        data, votes = votes_of(run, data, self.labeller, "label_model")
        classes = count_classes(votes, self.classes, "label_model")
        prior = np.asarray(self.prior, dtype=np.float64)
        if self.table not in ("one_coin", "full"):
            raise Bad(f"table={self.table!r}: give one_coin or full")
        if len(prior) and not (len(prior) == classes and (prior > 0).all() and abs(prior.sum() - 1) <= 1e-6):
            raise Bad(f"prior={self.prior}: give {classes} shares above 0 that add up to 1")
        found = label_model(
            votes, classes, self.table == "full", prior if len(prior) else None, self.rounds, self.smoothing
        )
        label = np.where(found.covered, found.shares.argmax(1), -1)
        return labelled(data, found.shares, label, self.uncovered, "label_model")
