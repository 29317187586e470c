from __future__ import annotations

from typing import Literal

from trainlore.nouns import Data
from trainlore.primitives.votes import count_classes, labelled, majority, votes_of
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="majority_vote",
    title="Majority vote",
    family="data/label",
    year=2016,
    tier="core",
    status="stable",
)
class MajorityVote(Curate):
    """Give each row the class that most labelling functions vote for.

    ## What it does
    Reads the column `votes` (-1 abstains) and writes `label`, `shares` (each class's share of the votes) and
    `confidence`, the largest share. Rows without a vote are dropped, or kept with label -1 and even shares.

        shares(x, k) = votes for k / votes

    ## Claim
    None of a paper: it is the rival of everything that weighs functions by how good they are. Ours is that many weak
    functions together label better than the best of them on the rows that any covers.

    ## Cost
    One pass over the votes; 4 bytes a row and class for the shares.

    ## Fields worth tuning
    `ties`, with an even number of functions.

    ## Watch out
    Every function counts the same, so a few bad or copied ones outvote a good one. Ties to the lowest class favour it:
    with two classes and two functions that is the whole answer on every conflict. Training refuses label -1: drop such
    rows or train on shares (`data.with_(labels=data["shares"])`).

    ## See also
    `label_model`, which learns how much each function is worth.
    """

    classes: int | None = None
    """Number of classes; none: the highest vote and one."""
    ties: Literal["lowest", "random", "abstain"] = "lowest"
    """Who gets a tie: the lowest of the tied classes, one of them by chance, or nobody."""
    uncovered: Literal["drop", "keep"] = "drop"
    """What becomes of rows without a label."""
    labeller: Curate | None = None
    """Step that makes the votes of data without them."""

    tiny = {
        "world": "text",
        "labeller": {"label_votes": {"rules": [{"label": 0, "if": "bada"}, {"label": 1, "if": "k[aeio]m"}]}},
    }

    def __call__(self, run: Run, data: Data) -> Data:
        data, votes = votes_of(run, data, self.labeller, "majority_vote")
        luck = run.numpy("majority_vote").random(len(votes)) if self.ties == "random" else None
        shares, label = majority(votes, count_classes(votes, self.classes, "majority_vote"), self.ties, luck)
        return labelled(data, shares, label, self.uncovered, "majority_vote")
