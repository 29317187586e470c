from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.curves import draw_power, fit_power, power_at, power_size
from trainlore.primitives.statistics import outcomes
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def shards(smallest: int, largest: int) -> np.ndarray:
    """Sizes that double, ending at `largest` and starting at `smallest` or up to twice of it, int (L,)."""
    count = int(np.floor(np.log2(largest / smallest))) + 1
    return (largest / 2.0 ** np.arange(count - 1, -1, -1)).round().astype(int)


def power_region(errors, guess: float, margin: float = 0.05) -> np.ndarray:
    """Which points of errors (L,), by growing size, are past the small-data region: better than guessing from there on, bool (L,).

    Never fewer than the last three.
    """
    errors = np.asarray(errors, dtype=np.float64)
    better = errors < (1 - margin) * guess
    first = len(errors) - int(np.argmin(better[::-1])) if not better.all() else 0
    return np.arange(len(errors)) >= min(first, len(errors) - 3)


@method(
    name="power_law",
    title="Power-law learning curves",
    paper="arXiv:1712.00409",
    lit="p201",
    family="measure/scale",
    year=2017,
    tier="core",
    status="stable",
)
class PowerLaw(Measure):
    """Fit how the error falls with the rows learned from, and predict it at more rows with an interval.

    ## What it does
    Shuffles `train`, cuts nested shards that double, trains on each for several seeds, drops the small-data region where the
    model does no better than guessing, and fits

        error(n) = a * n^-b + c            (c >= 0: what no amount of rows removes)

    weighted by 1 / error^2, that is in relative error as on log-log axes. The interval refits the curve to itself plus the
    noise seen between seeds. Inverted, it gives the rows a `target` error takes: n = ((target - c) / a)^(-1/b).

    ## Claim
    In translation, language modelling, images and speech the error of well-tuned models follows a power law in the rows over
    two to three orders of magnitude, with exponents b from 0.07 to 0.35 where theory says 0.5 or 1; better models and
    optimizers move a, hardly b, and the model size that fits best grows slower than the rows.

    ## Cost
    `seeds` trainings on about twice the largest shard.

    ## Fields worth tuning
    `share` and `smallest` (the longer the lever, the better c is known), `seeds`, and enough `epochs` for every shard to
    converge: an undertrained shard bends the curve.

    ## Watch out
    Three parameters on five points: b and c trade against each other, and the prediction is far surer than either. An interval
    knows the scatter of seeds, not a bend that lies beyond the last shard. On digits with too few steps for the larger shards, the
    law from 160 rows missed the error at 400 by more (0.043) than the last shard's own error did (0.026, n = 10).
    A curve off the law usually is a bug or a model too small: look at `errors`.

    ## Differs from the paper
    It searches the model size and the regularisation anew for every shard and takes the median of the best validation errors;
    here one model is trained with one setting and seeds are averaged.

    ## See also
    learning_trend, annealing_law, pass_until
    """

    train: Data
    """Rows to cut shards from."""
    at: int = 0
    """Rows to predict the error at; 0 for all of `train`."""
    share: float = 0.5
    """The largest shard, as a share of `train`."""
    smallest: int = 16
    """Rows of the smallest shard, at least."""
    seeds: int = 2
    """Shuffles, each with its own nested shards."""
    metric: str = "accuracy"
    """What falls: accuracy (as 1 - accuracy) or loss."""
    target: float = 0.0
    """An error to give the rows for; 0 asks for none."""
    epochs: float = 10.0
    """Passes over every shard."""
    least: int = 100
    """Steps that even the smallest shard gets."""
    batch_size: int = 32
    """Rows a step."""
    lr: float = 1e-3
    """Learning rate."""
    level: float = 0.8
    """Level of the interval."""

    tiny = {"world": "digits", "train": "$data", "smallest": 40, "epochs": 1.0, "least": 20, "lr": 1e-2, "target": 0.2}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        data.need(who="power_law")
        if not 0 < self.share <= 1 or not 0 < self.level < 1:
            raise Bad(f"share={self.share} must be above 0 and at most 1, level={self.level} between 0 and 1")
        largest = int(self.share * len(self.train))
        if self.smallest < 1 or largest < 4 * self.smallest:
            raise Bad(f"three shards need {4 * self.smallest} rows, `share` gives {largest}: change it or `smallest`")
        sizes, rows = shards(self.smallest, largest), []
        table, how = np.empty((self.seeds, len(sizes))), {"batch_size": self.batch_size, "lr": self.lr}
        for seed in range(self.seeds):
            order = run.numpy("shards", seed).permutation(len(self.train))
            for i, n in enumerate(sizes):
                steps = max(self.least, round(self.epochs * n / self.batch_size))
                grown = run.fit(model.copy(), self.train.take(order[:n]), steps=steps, **how)
                values, weights = outcomes(run, grown, data, self.metric)
                values = 1 - values if self.metric == "accuracy" else values
                table[seed, i] = np.average(values, weights=weights)
            rows.append(values)
        errors, ahead = table.mean(0), self.at or len(self.train)
        inside = power_region(errors, self._guess(data))
        x, y = sizes[inside], np.maximum(errors[inside], 1e-9)
        law, spread = fit_power(x, y, 1 / y**2), None
        if self.seeds > 1:  # one coefficient of variation for all shards: two seeds say little of a single one
            spread = y * np.sqrt((table[:, inside].var(0, ddof=1) / y**2).mean() / self.seeds)
        drawn = power_at(draw_power(x, y, run.numpy("interval"), spread, 1 / y**2), [ahead])[:, 0]
        notes = {
            **dict(zip(("scale", "exponent", "floor"), law.tolist(), strict=True)),
            "sizes": sizes.tolist(),
            "errors": table.tolist(),
            "fitted": inside.tolist(),
            "predicted_at": ahead,
            "predicted": float(power_at(law, [ahead])[0]),
            "interval": np.quantile(drawn, [(1 - self.level) / 2, (1 + self.level) / 2]).tolist(),
        }
        if self.target:
            needed = float(power_size(law, self.target))
            notes |= {"target": self.target, "rows_needed": None if np.isinf(needed) else needed}
        name = "error" if self.metric == "accuracy" else "loss"
        return Report.of(name, np.mean(rows, 0), better="lower", rows=data.ids, weights=weights, notes=notes)

    def _guess(self, data: Data) -> float:
        """The error of always answering the most frequent class; infinite where there is no such thing."""
        if self.metric != "accuracy" or "label" not in data.columns:
            return float("inf")
        _, counts = np.unique(data["label"], return_counts=True)
        return 1 - counts.max() / counts.sum()
