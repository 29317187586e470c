from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_budget
from trainlore.primitives.greedy import embeddings, how_many
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.neighbours import nearest
from trainlore.primitives.probes import cheapest, fit_linear
from trainlore.runs import Run
from trainlore.verbs import Curate, Part, method


@method(
    name="instruct_mining",
    title="InstructMining",
    paper="arXiv:2307.06290",
    lit="p322",
    family="data/select",
    year=2023,
    tier="llm",
    status="stable",
)
class InstructMining(Curate):
    """Keep the rows whose indicators promise the lowest loss, by a linear rule fitted on many small fine-tunings.

    ## What it does
    A rule says what held-out loss a model tuned on rows like this one would have; the rows of least loss are kept.

        log L(x) = intercept + sum over k of weight_k * indicator_k(x)        (the column `instruct_mining`)

    It is the paper's, or fitted to `probes`: for each small fine-tuning the means of the indicators over its rows and
    the `loss` it gave. With `trials`, models are tuned on the best n rows, and the n of least held-out loss is taken.

    ## Claim
    Llama tuned on chosen rows beats one tuned on unfiltered ones in 42.5% of the cases (first version); 2,532 of 100,000
    rows of OpenOrca, found by BlendSearch, make a 7B model level with Vicuna-1.5-7B or better in 64.7% (last version).

    ## Cost
    One pass for an indicator not there yet (`knn_6`: all pairs of rows in blocks); with `trials`, as many fine-tunings.

    ## Fields worth tuning
    `probes`: the paper's weights are of its models, reward model and data; on other scales they choose otherwise.

    ## Watch out
    The rule is linear and unbounded: rows beyond what the probes had (very long, alone in space) win or lose by
    extrapolation. Here, on texts of which four in ten were noise, a fitted rule let in 3% of it and the model was still
    worse than on random rows (+0.06 nats held out, n = 10): only the most predictable rows were left.

    ## Differs from the paper
    Indicators that need a model of their own are columns. The weights are the first version's; the last version's are
    -0.0078 reward, 0.4421 understandability, -0.3212 naturalness, -0.1520 coherence, 0.0274, both as quoted by others.
    `length` is in words of the answer, or its tokens where it is encoded. BlendSearch is a bisection over log n here.

    ## See also
    codeact, kmeans_quality, random_rows.
    """

    indicators: tuple[str, ...] = ("reward", "length", "knn_6")
    """Columns of the rule; `length`, and with an encoder `knn_6` (distance to the sixth nearest row), are made."""
    weights: tuple[float, ...] = (-0.1498, 8.257e-05, -0.9350)
    """Weight of each indicator; not used with `probes`."""
    intercept: float = 1.0694
    """The constant of the rule; not used with `probes`."""
    probes: Data | None = None
    """A row for each probe: the means of the indicators over its rows, and its `loss`."""
    level: float = 0.05
    """Indicators whose weight has a p-value above it are dropped from a fitted rule."""
    encoder: Model | None = None
    """Model that embeds the rows for `knn_6`."""
    keep: float = 0.1
    """Share of the rows to keep, or the most of them that a search may take; above 0 and at most 1."""
    trials: int = 0
    """Amounts to try; 0: keep the share `keep`."""
    least: float = 0.01
    """The smallest share a search may take."""
    model: Model | None = None
    """The model to tune in a search; it stays as it is."""
    held_out: Data | None = None
    """Rows on which a search compares the tuned models."""
    epochs: int = 3
    """Epochs of each trial."""
    inner: tuple[Part, ...] = ()
    """Parts of each trial's training."""
    batch_size: int = 32
    """Rows a step in a trial."""
    lr: float = 1e-3
    """Learning rate of a trial."""

    null = {"keep": 1.0}
    tiny = {"world": "text", "indicators": ["length"], "weights": [-0.001], "intercept": 0.0, "keep": 0.25}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(who="instruct_mining")
        if not self.indicators or self.trials < 0:
            raise Bad(f"indicators={self.indicators}, trials={self.trials}: give one indicator or more, trials from 0")
        score = self._rule(np.column_stack([self._indicator(run, data, name) for name in self.indicators]))
        keep = self._searched(run, data, score) / len(data) if self.trials else self.keep
        return data.with_(instruct_mining=score).take(take_budget(-score, keep))

    def _rule(self, values: np.ndarray) -> np.ndarray:
        """The logarithm of the loss that each row promises, float64 (N,), of its indicators (N, K)."""
        if self.probes is None:
            if len(self.weights) != len(self.indicators):
                raise Bad(f"{len(self.indicators)} indicators and {len(self.weights)} weights: give one for each")
            return self.intercept + values @ np.array(self.weights)
        seen = np.column_stack([_numbers(self.probes, n, "`probes`") for n in (*self.indicators, "loss")])
        if (seen[:, -1] <= 0).any():
            raise Bad("`probes`: `loss` must be above 0")
        intercept, weights = fit_linear(seen[:, :-1], np.log(seen[:, -1]), self.level)
        return intercept + values @ weights

    def _indicator(self, run: Run, data: Data, name: str) -> np.ndarray:
        """One indicator of every row, float64 (N,)."""
        if name in data.columns or name not in ("length", "knn_6"):
            return _numbers(data, name, "instruct_mining")
        if name == "length" and "labels" in data.columns:
            tokens, at = data.lists("labels")
            return np.diff(np.cumsum(np.r_[0, tokens != -100])[at]).astype(np.float64)
        if name == "length":
            texts = data.text("completion" if "completion" in data.columns else "text")
            return np.array([len(text.split()) for text in texts], np.float64)
        who = "instruct_mining" if self.encoder else "instruct_mining without an `encoder`"
        cosine = nearest(embeddings(run, data, self.encoder, "knn_6", who), min(6, len(data) - 1))[0][:, -1]
        return (2 - 2 * cosine).clamp(min=0).sqrt().double().numpy()

    def _searched(self, run: Run, data: Data, score: np.ndarray) -> int:
        """The number of rows whose tuned model has the least held-out loss."""
        if self.model is None or self.held_out is None or self.least > self.keep:
            raise Bad(f"trials={self.trials} needs `model`, `held_out` and least={self.least} up to keep={self.keep}")
        model, best = self.model, np.argsort(score, kind="stable")

        def cost(rows: int) -> float:
            how = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
            tuned = run.fit(model.copy(), data.take(np.sort(best[:rows])), *self.inner, **how)
            losses = run.infer(tuned, self.held_out, lambda b, o: per_row(rowwise(model.kind, b, o), b, model.kind))
            return float(losses.mean())

        return cheapest(cost, how_many(self.least, len(data)), how_many(self.keep, len(data)), self.trials)


def _numbers(data: Data, name: str, who: str) -> np.ndarray:
    """A column of one finite number a row, float64 (N,)."""
    data.need(name, who=who)
    column = data[name]
    if not isinstance(column, np.ndarray) or column.ndim != 1 or not np.isfinite(column).all():
        raise Bad(f"{who}: column {name!r} must hold one number in every row; fill or drop the others")
    return column.astype(np.float64)
