from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.curves import fit_power, power_at, power_size
from trainlore.primitives.statistics import outcomes
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def trends(sizes, accuracies) -> np.ndarray:
    """One trend for the first 3, 4, ... L points: laws (L-2, 3) of the error 1 - accuracy at sizes (L,), the floor left free.

    A law's accuracy at n rows is 1 - floor - scale * n^-exponent, so 1 - floor is its asymptote.
    """
    sizes, errors = np.asarray(sizes, dtype=np.float64), 1 - np.asarray(accuracies, dtype=np.float64)
    return np.stack([fit_power(sizes[:i], errors[:i], floor=(-np.inf, np.inf)) for i in range(3, len(sizes) + 1)])


def feasible(laws) -> np.ndarray:
    """Which trends (..., 3) rise towards an asymptote that an accuracy can have, bool (...)."""
    laws = np.asarray(laws)
    return (laws[..., 2] >= 0) & (laws[..., 2] < 1) & (laws[..., 0] > 0)


def prediction_level(laws, full: float, tau: float) -> int | None:
    """The first trend (0-based) that is feasible, as the one before it, and moves the accuracy at `full` rows by tau or less."""
    ahead = 1 - power_at(laws, [full])[:, 0]
    calm = feasible(laws)[1:] & feasible(laws)[:-1] & (np.abs(np.diff(ahead)) <= tau)
    return int(np.argmax(calm)) + 1 if calm.any() else None


@method(
    name="learning_trend",
    title="Learning-trend prediction",
    paper="arXiv:2402.02515",
    lit="p015",
    family="measure/scale",
    year=2024,
    tier="core",
    status="stable",
)
class LearningTrend(Measure):
    """Predict the rest of an accuracy curve from its start, and the rows a wanted accuracy still needs.

    ## What it does
    Trains on prefixes of `train` that grow by equal steps. From the third on, every level i fits a trend to all points so far:

        accuracy_i(n) = c_i - a_i * n^-b_i          (bounded least squares, c_i left free)

    A trend is feasible when it rises to an asymptote c_i of at most 1. Training stops at the prediction level: two feasible
    trends in a row whose accuracies at all of `train` differ by `tau` or less. Out come the predicted accuracy of all rows and,
    for a `target`, the rows it takes (infinite above the asymptote).

    ## Claim
    Past the prediction level the estimate converges to the full curve whatever the learner, and a proximity condition lets a
    user stop at a wanted distance from the accuracy finally reached; shown on part-of-speech taggers for English and Spanish.

    ## Cost
    One training for every level: together `(levels + 1) / 2 * share` trainings on all rows, less where it stops early.

    ## Fields worth tuning
    `tau`, the accuracy you can afford to be wrong by; `share`, how far the start reaches; `seeds`, when the points scatter.

    ## Watch out
    A power law knows no plateau before its floor and no jump: a curve that starts with a flat stretch (too few steps, or a
    model that cannot fit) makes infeasible trends. Points scatter with the rows drawn; below a thousand test rows the noise of
    the test set alone is over a point, and a `tau` under it stops by luck. Without a feasible trend the last one is fitted
    again with its asymptote held at 1 or less, and `settled` is false. Where little is left to gain, the last accuracy
    seen is as good a guess: from 160 to 400 digits, too few steps each, the trend missed by 0.040 and it by 0.035 (n = 10).

    ## Differs from the paper
    Only its abstract and summaries could be read. The power family and the fit of every level are as described there; our
    proximity condition compares successive trends at the full size, and anchoring by a point at infinity is left out.

    ## See also
    power_law, annealing_law
    """

    train: Data
    """Rows to learn from; the accuracy of all of them is predicted."""
    share: float = 0.5
    """The largest prefix, as a share of `train`."""
    levels: int = 8
    """Prefixes at most, of equal steps."""
    tau: float = 0.005
    """Stop when the prediction moved by this much or less."""
    target: float = 0.0
    """An accuracy to give the rows for; 0 asks for none."""
    seeds: int = 1
    """Orders of the rows to average every point over."""
    epochs: float = 10.0
    """Passes over every prefix."""
    least: int = 100
    """Steps that even the smallest prefix gets."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate."""

    tiny = {"world": "digits", "train": "$data", "levels": 4, "epochs": 1.0, "least": 20, "lr": 1e-2, "target": 0.9}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data.need(who="learning_trend")
        if not 0 < self.share <= 1:
            raise Bad(f"share must be above 0 and at most 1, not {self.share}")
        if self.levels < 3 or len(self.train) * self.share < self.levels:
            raise Bad(
                f"levels must be 3 or more and each needs a row; {self.levels} levels over {self.share:g} of {len(self.train)} rows"
            )
        sizes = np.round(np.linspace(0, self.share * len(self.train), self.levels + 1)[1:]).astype(int)
        accuracies: list[float] = []
        level = None
        for n in sizes:
            hits, weights = self._measured(run, model, data, int(n))
            accuracies.append(float(np.average(hits.mean(0), weights=weights)))
            if len(accuracies) >= 4:
                level = prediction_level(trends(sizes[: len(accuracies)], accuracies), len(self.train), self.tau)
            if level is not None:
                break
        used = sizes[: len(accuracies)]
        laws = trends(used, accuracies)
        law = laws[-1] if feasible(laws[-1]) else fit_power(used, 1 - np.array(accuracies), floor=(0.0, 1.0))
        notes = {
            "sizes": used.tolist(),
            "accuracies": accuracies,
            "trends": [{"asymptote": 1 - c, "scale": a, "exponent": b} for a, b, c in laws.tolist()],
            "settled": level is not None,
            "predicted": float(1 - power_at(law, [len(self.train)])[0]),
            "predicted_at": len(self.train),
            "asymptote": float(1 - law[2]),
        }
        if self.target:
            needed = float(power_size(law, 1 - self.target))
            notes |= {"target": self.target, "rows_needed": None if np.isinf(needed) else needed}
        return Report.of("accuracy", hits.mean(0), rows=data.ids, weights=weights, notes=notes)

    def _measured(self, run: Run, model: Model, data: Data, n: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Outcomes (seeds, N) of models trained on n rows, and what each row counts."""
        steps = max(self.least, round(self.epochs * n / self.batch_size))
        found = []
        for seed in range(self.seeds):
            rows = run.numpy("order", seed).permutation(len(self.train))[:n]  # prefixes of one order are nested
            grown = run.fit(model.copy(), self.train.take(rows), steps=steps, batch_size=self.batch_size, lr=self.lr)
            found.append(outcomes(run, grown, data))
        return np.stack([values for values, _ in found]), found[0][1]
