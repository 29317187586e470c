from __future__ import annotations

from trainlore.nouns import Data, Model
from trainlore.primitives.ranking import margins
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="teacher_margins",
    title="Teacher margins, kept with the rows",
    paper="arXiv:2010.02666",
    lit="p444",
    family="compress/distil",
    year=2020,
    tier="core",
    code="sebastian-hofstaetter/neural-ranking-kd",
    status="stable",
)
class TeacherMargins(Curate):
    """Score every pair of texts once by slow rankers, and keep their margin as a column for any number of students.

    ## What it does
    Adds to rows of `prompt`, `chosen` and `rejected` the column that `margin_mse` learns from.

        margin = mean over teachers of M_t(prompt, chosen) - M_t(prompt, rejected)

    ## Claim
    The authors publish their teachers' scores of MSMARCO's training triples, so that others need no teacher.

    ## Cost
    Two passes of every teacher over query and text (three where it embeds them apart). 4 bytes a row.

    ## Watch out
    Rows chosen by `margin` afterwards (`margin` below 0: the pair is the wrong way round, says the teacher) are another
    training set; the paper keeps all.

    ## Differs from the paper
    The margin is kept, not the two scores: nothing else is learned from.

    ## See also
    `margin_mse`
    """

    teachers: tuple[Model, ...]
    """Who scores: a classifier or regressor reads query and text as one row, any other model embeds both apart."""
    into: str = "margin"
    """The column to write."""

    tiny = {"world": "pairs", "teachers": "$reference"}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need("prompt", "chosen", "rejected", who="teacher_margins")
        return data.with_(**{self.into: margins(run, self.teachers, data)})
