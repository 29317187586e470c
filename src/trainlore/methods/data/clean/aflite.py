from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.greedy import embeddings
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def linear(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Classes (H,) that a logistic regression on points x (M, D) and labels y (M,) gives the points held (H, D)."""
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if (y == y[0]).all():  # one class left: nothing to fit
        return np.full(len(held), y[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a hundred steps are plenty to see what is easy
        return LogisticRegression(max_iter=100).fit(x, y).predict(held)


def predictability(x: np.ndarray, y: np.ndarray, train: int, models: int, rng: np.random.Generator) -> np.ndarray:
    """How often each point was told right by classifiers that had not seen it, float64 (N,); NaN if never held out.

    x (N, D), y (N,); each of `models` linear classifiers learns `train` points drawn at random and tells the others.
    """
    right, asked = np.zeros(len(y)), np.zeros(len(y))
    for _ in range(models):
        order = rng.permutation(len(y))
        seen, held = order[:train], order[train:]
        right[held] += linear(x[seen], y[seen], x[held]) == y[held]
        asked[held] += 1
    return np.divide(right, asked, out=np.full(len(y), np.nan), where=asked > 0)


def easiest(score: np.ndarray, most: int, tau: float, rng: np.random.Generator) -> np.ndarray:
    """Positions, ascending, of up to `most` points with the highest score (N,), none below tau or NaN; ties by lot."""
    order = np.lexsort((rng.random(len(score)), -np.nan_to_num(score, nan=-1.0)))[:most]
    return np.sort(order[score[order] >= tau])


@method(
    name="aflite",
    title="AFLite (light-weight adversarial filtering)",
    paper="arXiv:1907.10641",
    lit="p075",
    family="data/clean",
    year=2019,
    tier="core",
    status="stable",
    code="allenai/winogrande",
)
class AFLite(Curate):
    """Drop the rows whose label a linear classifier reads off fixed embeddings without having seen them.

    ## What it does
    Many linear classifiers are trained on random parts of the rows and asked about the rest. The rows that are told
    right most often go, a slice at a time, and the classifiers are trained anew on what is left:

        score(i) = times i was told right / times i was held out        over `models` random splits
        drop the `slice` highest scores among those >= tau
        until fewer than `slice` reach tau, or `least` rows are left

    The column `aflite` holds the last score of each row, for a dropped row the one it was dropped with, and
    `aflite_round` the round in which it went, from 0; -1 for kept rows.

    ## Claim
    WinoGrande, 44k problems before filtering: on the filtered set the best models reach 59.4 to 79.1% where people
    reach 94.0%. Later work of the group: a model's accuracy on SNLI falls from 92% to 62% by filtering.

    ## Cost
    `models` logistic regressions on `train` rows a round, and about (rows - least) / slice rounds. One embedding pass
    with an `encoder`.

    ## Fields worth tuning
    `train` to a fifth of the rows or so; `slice` to a hundredth; `tau` up to keep more.

    ## Watch out
    Easy is not wrong: on a clean set the typical rows go first and the mislabelled ones stay. Filter labels first, and
    use this for tests that are to be hard or for sets with known cues, not to make any set better. The embeddings
    decide what is a cue: the paper fine-tunes an encoder on a part of the rows and throws that part away. Classes may
    end up uneven: of two classes the easier one loses more.

    ## Differs from the paper
    Rounds, defaults and the stop at the training size are the paper's, as later code of others also has them. Columns
    are scaled to unit spread once, so that the regression's penalty treats them alike. Ties, which are many, go by lot:
    by position they would empty one class of a sorted table. `least` is the target size that the authors' later paper
    adds.

    ## See also
    `grand` and `el2n`, which keep the hard rows by one network's training; `aum`, which drops wrong labels.
    """

    encoder: Model | None = None
    """Model whose mean-pooled last layer embeds the rows; without it `column` must hold embeddings."""
    column: str = "features"
    """Column of embeddings (N, D), read when there is no `encoder`."""
    label: str = "label"
    """Column of the class that is to be hard to tell."""
    models: int = 64
    """Linear classifiers a round."""
    train: int = 10_000
    """Rows each classifier learns; fewer than there are."""
    slice: int = 500
    """The most rows dropped in a round."""
    tau: float = 0.75
    """The least share of right answers of a row that may be dropped."""
    least: int | None = None
    """Rows at which to stop; none: `train`."""

    needs_memory = "rows * width * 16"
    null = {"tau": 2.0}
    tiny = {"world": "digits", "models": 4, "train": 200, "slice": 60}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.label, who="aflite")
        x, y = self._points(run, data), np.asarray(data[self.label])
        if y.ndim != 1:
            raise Bad(f"label={self.label!r} holds lists; name a column with one class a row")
        y = np.unique(y.astype(str), return_inverse=True)[1]  # whatever the classes are called
        if self.models < 1 or self.slice < 1 or not self.tau > 0:
            raise Bad(f"models={self.models}, slice={self.slice}, tau={self.tau}: give 1 or more, 1 or more, above 0")
        if len(data) < 2:
            raise Bad("aflite needs 2 rows or more, some to learn from and some to be told; there is one")
        if not 1 <= self.train < len(data):
            raise Bad(
                f"train={self.train}: classifiers learn fewer than the {len(data)} rows; try {len(data) // 5 or 1}"
            )
        stop = max(self.train, self.least or 0)
        score, gone = np.full(len(data), np.nan), np.full(len(data), -1)
        left, t = np.arange(len(data)), 0
        while len(left) > stop and self.tau <= 1:
            rng = run.numpy("aflite", t)
            now = predictability(x[left], y[left], self.train, self.models, rng)
            score[left] = now
            out = easiest(now, min(self.slice, len(left) - stop), self.tau, rng)
            gone[left[out]] = t
            left = np.delete(left, out)
            if len(out) < self.slice:
                break
            t += 1
        return data.with_(aflite=score, aflite_round=gone).take(left)

    def _points(self, run: Run, data: Data) -> np.ndarray:
        """The embeddings, each column with mean 0 and spread 1: float32 (N, D)."""
        x = embeddings(run, data, self.encoder, self.column, "aflite").numpy()
        spread = x.std(0)
        return ((x - x.mean(0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
