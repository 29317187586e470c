from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.votes import count_classes, majority, table, votes_of
from trainlore.runs import Run
from trainlore.verbs import Curate, Measure, method


@method(
    name="vote_table",
    title="Table of labelling functions",
    family="data/label",
    year=2018,
    tier="core",
    status="stable",
    code="snorkel-team/snorkel",
)
class VoteTable(Measure):
    """Tell what each labelling function covers, where it clashes with others, and how often it is right.

    ## What it does
    Reads the column `votes`. For each row: whether any function votes (`coverage`), whether two or more do (`overlap`) and
    whether they disagree (`conflict`); where a column of true labels is there, also whether the majority is right
    (`majority_accuracy`, over the rows that have a truth and a vote). In the notes of `coverage`, under `functions`, the
    same for each function, with its classes and its own accuracy.

    ## Claim
    None: it is a ruler.

    ## Cost
    A pass over the votes. No network runs; the model that a measure is given is not looked at.

    ## Watch out
    Little conflict is no proof of quality: functions that are copies of each other never clash.

    ## See also
    `label_votes` makes the votes; `label_model` estimates accuracies without any truth.
    """

    names: tuple[str, ...] = ()
    """Names of the functions in the order of their votes; none: their numbers."""
    truth: str = "truth"
    """Column of true classes, negative where unknown; passed over where there is none."""
    labeller: Curate | None = None
    """Step that makes the votes of data without them."""

    known = {"is_charged": "it counts votes and runs no network"}
    tiny = {
        "world": "text",
        "labeller": {"label_votes": {"rules": [{"label": 0, "if": "bada"}, {"label": 1, "if": "k[aeio]m"}]}},
    }

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data, votes = votes_of(run, data, self.labeller, "vote_table")
        truth = self._truth(data)
        voters = (votes >= 0).sum(1)
        classes = max(2, int(votes.max()) + 1)
        told = votes.max(1)
        clash = np.where(votes >= 0, votes, told[:, None]).min(1) != told
        notes = {"functions": table(votes, truth, self.names)}
        reports = [
            Report.of("coverage", voters > 0, rows=data.ids, notes=notes),
            Report.of("overlap", voters > 1, better="", rows=data.ids),
            Report.of("conflict", clash, better="", rows=data.ids),
        ]
        if truth is not None and (judged := (truth >= 0) & (voters > 0)).any():
            label = majority(votes, count_classes(votes, classes, "vote_table"))[1]
            reports.append(Report.of("majority_accuracy", (label == truth)[judged], rows=data.ids[judged]))
        return Report.join(*reports)

    def _truth(self, data: Data) -> np.ndarray | None:
        if self.truth not in data.columns:
            return None
        truth = np.asarray(data[self.truth])
        if truth.ndim != 1 or truth.dtype.kind not in "iu":
            raise Bad(f"truth={self.truth!r} holds {data.table[self.truth].type}, not class numbers")
        return truth.astype(np.int64)
