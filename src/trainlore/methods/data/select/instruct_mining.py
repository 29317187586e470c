from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_budget
from trainlore.primitives.greedy import embeddings, how_many
from trainlore.primitives.losses import per_row, rowwise
from trainlore.primitives.neighbours import nearest
from trainlore.runs import Run
from trainlore.verbs import Curate, Part, method


def fit_rule(indicators: np.ndarray, log_loss: np.ndarray, level: float = 0.05) -> tuple[float, np.ndarray]:
    """Intercept and weights (K,) of log_loss (P,) ~ intercept + indicators (P, K) @ weights, by least squares.

    One after another the indicator of largest p-value (t-test) is dropped while that is above `level`; its weight is 0."""
    from scipy import stats

    probes, held = len(log_loss), list(range(indicators.shape[1]))
    while held:
        x = np.column_stack([np.ones(probes), indicators[:, held]])
        if (free := probes - x.shape[1]) < 1:
            raise Bad(f"{probes} probes are too few for {len(held)} indicators: give {len(held) + 2} or more")
        beta, *_ = np.linalg.lstsq(x, log_loss, rcond=None)
        error = np.square(log_loss - x @ beta).sum() / free
        t = beta / np.sqrt(np.maximum(error * np.diag(np.linalg.pinv(x.T @ x)), 1e-300))
        p = 2 * stats.t.sf(np.abs(t), free)[1:]
        if p.max() <= level:
            weights = np.zeros(indicators.shape[1])
            weights[held] = beta[1:]
            return float(beta[0]), weights
        held.pop(int(p.argmax()))
    raise Bad(f"no indicator tells the probes' losses apart at level={level}: give more probes, or raise level")


def blend_search(
    cost: Callable[[int], float], low: int, high: int, trials: int, rng: np.random.Generator
) -> tuple[int, dict[int, float]]:
    """The amount from low to high of least cost among `trials` tried, and all that were tried with their costs.

    Steps up and down the logarithm of the amount from the cheapest on, halved when neither direction is better; where they
    have shrunk below a tenth of the span it goes on from an amount drawn at random.
    """
    seen: dict[int, float] = {}

    def at(x: float) -> float:
        amount = int(np.clip(round(np.exp(x)), low, high))
        if amount not in seen and len(seen) < trials:
            seen[amount] = cost(amount)
        return seen.get(amount, np.inf)

    bottom, top = np.log(low), np.log(high)
    x, step = bottom, (top - bottom) / 2
    for _ in range(4 * trials):
        here = at(x)
        if len(seen) >= min(trials, high - low + 1):
            break
        better = [z for z in (x + step, x - step) if bottom <= z <= top and at(z) < here]
        if better:
            x = min(better, key=at)
        elif (step := step / 2) < (top - bottom) / 10:
            x, step = rng.uniform(bottom, top), (top - bottom) / 2
    return min(seen, key=lambda amount: (seen[amount], amount)), seen


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

    A rule says what held-out loss a model fine-tuned on rows like this one would have, and the rows of least loss are kept.
    The column `instruct_mining` is that logarithm.

        log L(x) = intercept + sum over k of weight_k * indicator_k(x)

    The rule is the paper's, or fitted by least squares to `probes`: one row for each small fine-tuning, with the means of
    the indicators over its rows and the `loss` that came of it. With `trials` the amount is searched as well: models are
    tuned on the best n rows, and the n of least held-out loss is taken.

    ## Claim

    Tuning Llama on the selected rows of instruction sets is better than on unfiltered ones in 42.5% of the cases (first
    version); 2,532 of 100,000 rows of OpenOrca, found by BlendSearch, make a 7B model level with Vicuna-1.5-7B or better in 64.7% of
    the judgements (last version).

    ## Cost

    One pass over the rows for an indicator that is not there yet (`knn_6`: an embedding pass and all pairs of rows in
    blocks); with `trials`, as many fine-tunings of `epochs` over at most the share `keep`.

    ## Fields worth tuning

    `probes`: the paper's weights are of its models, its reward model and its data.

    ## Watch out

    The rule is linear and unbounded: rows beyond what the probes had (very long, alone in space) win or lose by
    extrapolation. Here, on texts of which four in ten were noise, a fitted rule let in 3% of it and the model was still worse
    than on random rows (+0.06 nats held out, n = 10): only the most predictable rows were left.
    Without probes, an indicator on another scale than the paper's changes the choice.

    ## Differs from the paper

    Indicators that need a model of their own (reward, naturalness, ...) are columns. The weights are those of the first version; the
    last version's are -0.0078 reward, 0.4421 understandability, -0.3212 naturalness, -0.1520 coherence and 0.0274, both as
    quoted by others. `length` is in words of the answer, or in its tokens where it is encoded. BlendSearch is a local search
    from the cheapest amount with random restarts, in one dimension.

    ## See also

    codeact, kmeans_quality, random_rows.
    """

    indicators: tuple[str, ...] = ("reward", "length", "knn_6")
    """Columns of the rule; `length`, and `knn_6` (distance to the sixth nearest row) if there is an encoder, are made."""
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
        values = np.column_stack([self._indicator(run, data, name) for name in self.indicators])
        if not np.isfinite(values).all():
            raise Bad(
                f"an indicator among {', '.join(self.indicators)} is not a number in some rows: fill or drop them"
            )
        if self.probes is not None:
            self.probes.need(*self.indicators, "loss", who="instruct_mining's `probes`")
            seen = np.column_stack([np.asarray(self.probes[name], np.float64) for name in self.indicators])
            intercept, weights = fit_rule(seen, np.log(np.asarray(self.probes["loss"], np.float64)), self.level)
        elif len(self.weights) != len(self.indicators):
            raise Bad(f"{len(self.indicators)} indicators and {len(self.weights)} weights: give one for each")
        else:
            intercept, weights = self.intercept, np.array(self.weights)
        score = intercept + values @ weights
        data, keep = data.with_(instruct_mining=score), self.keep
        if self.trials:
            keep = self._searched(run, data, score) / len(data)
        return data.take(take_budget(-score, keep))

    def _indicator(self, run: Run, data: Data, name: str) -> np.ndarray:
        """One indicator of every row, float64 (N,)."""
        if name in data.columns or name not in ("length", "knn_6"):
            data.need(name, who="instruct_mining")
            return np.asarray(data[name], np.float64)
        if name == "length":
            if "labels" in data.columns:
                tokens, at = data.lists("labels")
                return np.add.reduceat(np.r_[tokens != -100, False], at[:-1]) * (np.diff(at) > 0) * 1.0
            texts = data.text("completion" if "completion" in data.columns else "text")
            return np.fromiter((len(text.split()) for text in texts), np.float64, len(data))
        if self.encoder is None:
            raise Bad("instruct_mining: 'knn_6' needs an `encoder`, or a column of that name")
        cosine = nearest(embeddings(run, data, self.encoder, "", "instruct_mining"), min(6, len(data) - 1))[0][:, -1]
        return (2 - 2 * cosine).clamp(min=0).sqrt().double().numpy()

    def _searched(self, run: Run, data: Data, score: np.ndarray) -> int:
        """The number of rows whose tuned model has the least held-out loss."""
        if self.model is None or self.held_out is None:
            raise Bad(f"trials={self.trials} needs a `model` to tune and `held_out` rows to compare on")
        model, held_out, best = self.model, self.held_out, np.argsort(score, kind="stable")

        def loss(batch: dict, out: torch.Tensor) -> torch.Tensor:
            return per_row(rowwise(model.kind, batch, out), batch, model.kind)

        def cost(rows: int) -> float:
            how = {"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr}
            tuned = run.fit(model.copy(), data.take(np.sort(best[:rows])), *self.inner, **how)
            return float(run.infer(tuned, held_out, loss).mean())

        low, high = (how_many(share, len(data)) for share in (self.least, self.keep))
        if low > high:
            raise Bad(f"least={self.least} is more than keep={self.keep}: lower least")
        return blend_search(cost, low, high, self.trials, run.numpy("instruct_mining"))[0]
