from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.statistics import outcomes
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def maintenance(after) -> np.ndarray:
    """Mean change of each task (T,) since it was learned, from scores after (T, T): row i was taken after learning task i.

    NaN for the last task, which nothing followed.
    """
    after = _square(after)
    change = np.tril(after - after.diagonal(), -1)
    later = np.arange(len(after) - 1, -1, -1)
    return np.where(later > 0, change.sum(0) / np.maximum(later, 1), np.nan)


def transfer(after, before) -> tuple[np.ndarray, np.ndarray]:
    """Contrasts (T, T) of forward and backward transfer: what learning task i did to task j, from -1 to 1.

    (new - old) / (new + old) of the scores of j on either side of learning i, from scores after (T, T) and scores before (T,)
    anything was learned. Forward: j is not yet learned (j > i); backward: it was (j < i). NaN elsewhere, and where both scores are 0.
    """
    after = _square(after)
    old = np.vstack([np.asarray(before, dtype=np.float64)[None], after[:-1]])
    with np.errstate(invalid="ignore", divide="ignore"):
        contrast = (after - old) / (after + old)
    tasks = np.arange(len(after))
    return np.where(tasks > tasks[:, None], contrast, np.nan), np.where(tasks < tasks[:, None], contrast, np.nan)


def _square(after) -> np.ndarray:
    after = np.asarray(after, dtype=np.float64)
    if after.ndim != 2 or after.shape[0] != after.shape[1] or len(after) < 2:
        raise Bad(
            f"scores must be a square of two tasks or more, one row after each task; their shape is {after.shape}"
        )
    return after


def _mean(values: np.ndarray) -> float | None:
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else None


@method(
    name="lifelong",
    title="Lifelong-learning metrics",
    paper="arXiv:2301.07799",
    lit="p017",
    code="lifelong-learning-systems/l2metrics",
    family="measure/evaluate",
    year=2023,
    tier="core",
    status="stable",
)
class Lifelong(Measure):
    """Measure what learning one task after another did to the other tasks: kept, passed on, lost.

    ## What it does
    Scores the models left by each task of a sequence on all tasks: R[i, j] is the accuracy on task j after learning task i, and
    R[-1] that of the measured model, which had learned none. From it

        performance maintenance of j = mean over i > j of  R[i, j] - R[j, j]
        transfer of i to j           = (R[i, j] - R[i-1, j]) / (R[i, j] + R[i-1, j])      forward j > i, backward j < i
        relative performance of j    = R[j, j] / accuracy of j's single-task expert        where `experts` are given

    For learning curves against an expert's `primitives.curves` has `relative_performance` (ratio of areas) and `sample_efficiency`
    (ratio of saturation times inverse ratio of the experiences it took).

    ## Claim
    A suite of metrics, not a method: in five case studies of lifelong learners it lays open trades between stability and
    plasticity, and a relation of sample efficiency to robustness, that a final average hides.

    ## Cost
    One pass of every model over the rows.

    ## Fields worth tuning
    None; give tasks in the order in which they were learned.

    ## Watch out
    The measured model is the one from before the first task, `stages` the ones after. A contrast of accuracies near 0 swings
    between -1 and 1 on a few rows. Maintenance above 0 can mean that tasks were left half learned.

    ## Differs from the paper
    One evaluation block after each task, every task learned once; the authors' toolkit handles any interleaving and normalizes
    scores to a range first. Their toolkit compares areas under curves with an expert; the step here compares final
    accuracies, and the areas are a plain function.

    ## See also
    compare
    """

    stages: list[Model]
    """The models after each task, in the order of learning."""
    tasks: list[str]
    """The tasks in the order of learning, as the column names them."""
    column: str = "domain"
    """The column that says which task a row belongs to."""
    experts: list[Model] | None = None
    """A model trained on each task alone, in the same order."""

    tiny = {
        "world": "text",
        "stages": ["$expert_a", "$expert_b"],
        "tasks": ["a", "b"],
    }

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data.need(self.column, who="lifelong")
        if len(self.stages) != len(self.tasks) or len(self.tasks) < 2:
            raise Bad(
                f"stages and tasks must pair up, two or more: there are {len(self.stages)} stages and {len(self.tasks)} tasks"
            )
        if self.experts is not None and len(self.experts) != len(self.tasks):
            raise Bad(f"experts must be one a task: there are {len(self.experts)} for {len(self.tasks)} tasks")
        names = np.asarray(data[self.column]).astype(str)
        if missing := [task for task in self.tasks if not (names == task).any()]:
            raise Bad(
                f"column {self.column!r} has no rows of {', '.join(missing)}; tasks there are {', '.join(sorted(set(names)))}"
            )

        def scores(m: Model) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
            values, weights = outcomes(run, m, data)
            here = [names == task for task in self.tasks]
            return (
                np.array([np.average(values[h], weights=None if weights is None else weights[h]) for h in here]),
                values,
                weights,
            )

        before = scores(model)[0]
        seen = [scores(stage) for stage in self.stages]
        after = np.stack([row for row, _, _ in seen])
        forward, backward = transfer(after, before)
        kept = maintenance(after)
        notes = {
            "matrix": [before.tolist(), *after.tolist()],
            "maintenance": _mean(kept),
            "forward_transfer": _mean(forward),
            "backward_transfer": _mean(backward),
            "tasks": {
                task: {"learned": after[j, j], "final": after[-1, j], "maintenance": _mean(kept[j : j + 1])}
                for j, task in enumerate(self.tasks)
            },
        }
        if self.experts is not None:
            alone = np.array([scores(expert)[0][j] for j, expert in enumerate(self.experts)])
            notes["relative_performance"] = _mean(
                np.where(alone > 0, after.diagonal() / np.maximum(alone, 1e-12), np.nan)
            )
        _, values, weights = seen[-1]
        return Report.of(
            "accuracy", values, rows=data.ids, groups={"task": names.tolist()}, weights=weights, notes=notes
        )
