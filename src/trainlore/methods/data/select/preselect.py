from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.losses import rowwise
from trainlore.primitives.ngrams import Hasher, bags
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def predictive_strength(loss: np.ndarray, ability: np.ndarray) -> np.ndarray:
    """Share of pairs of models that a text's losses (N, M) put in the order of their abilities (M,): (N,) in [0, 1].

    A pair agrees where the abler model has the lower loss. Equal losses do not agree; models of equal ability are no pair.
    """
    ability = np.asarray(ability)
    worse, better = np.nonzero(ability[:, None] < ability)
    return (loss[:, worse] > loss[:, better]).mean(1)


def extremes(strength: np.ndarray, share: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the strongest and the weakest of (N,), as many of each and no row in both; equal ones in row order.

    The rows of the highest value there is and as many from the bottom; or `share` of all rows at either end.
    """
    highest = int((strength == strength.max()).sum())
    count = min(highest, len(strength) - highest) if share is None else max(1, int(share * len(strength)))
    order = np.argsort(-strength, kind="stable")
    return order[:count], order[len(order) - count :]


@method(
    name="preselect",
    title="PreSelect (predictive data selection)",
    paper="arXiv:2503.00808",
    lit="p205",
    family="data/select",
    year=2025,
    tier="llm",
    status="stable",
    code="hkust-nlp/PreSelect",
)
class PreSelect(Curate):
    """Keep texts like those on which better models have the lower loss.

    ## What it does
    Some models whose ability at a task is known read a sample of the texts. A text's predictive strength is how often
    the order of their losses on it is the order of their abilities:

        S(x) = mean over pairs with ability_i < ability_j of [ loss_i(x) > loss_j(x) ]

    A linear classifier over hashed words and pairs of words learns to tell the strongest texts of the sample from the
    weakest, and scores all of them. Losses are of whole texts, which for one and the same text orders models as bits a
    character do, whatever their tokenizers. The column `preselect` holds the classifier's log odds.

    ## Claim
    A 1 B model trained on 30 B chosen tokens is ahead of one trained on 300 B without choice; at 3 B and 100 B tokens it
    beats the filters of DCLM and FineWeb-Edu. The models were six Llamas from 7 B to 65 B.

    ## Cost
    One forward pass of every model over the sample, whatever the size of the pool, and one pass over the text without a model.
    Memory: two numbers a row, and the n-grams of the texts trained on.

    ## Fields worth tuning
    The models: what they are ranked by decides what is kept. `sample`: the authors' training texts were some 400,000.

    ## Watch out
    Models that differ in nothing but size agree on nearly every text, and strength then says little: look at how many
    texts have all pairs right. The losses of a text are noisy; with few models whole texts land in the extremes by chance.
    A text must fit the smallest window: cut long ones first.

    ## Differs from the paper
    Logistic regression on normalized counts instead of fastText (3 epochs, rate 0.1, words and pairs), of which it is the form
    without a bottleneck. The extremes are the authors' code's: texts with all pairs right against as many from the bottom;
    where no text has all right, the highest there are. `share` is ours.

    ## See also
    dsir, color_filter, qurating.
    """

    models: tuple[Model, ...]
    """Causal models, two or more."""
    ability: tuple[float, ...]
    """The score of each model at the task, higher is better."""
    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens (words of the text where it is not encoded): a number above 1, or a share of all at most 1."""
    sample: int | None = None
    """Rows that the models read, drawn evenly; none: all."""
    share: float | None = None
    """Share of the sample taken at either end, at most a half; none: all that have the highest strength."""
    ngrams: int = 2
    """Longest run of words the classifier sees."""
    buckets: int = 1 << 18
    """Number of buckets the n-grams are hashed into."""
    penalty: float = 0.1
    """Weight of half the classifier's squared length against the summed losses of its texts."""
    column: str = "text"
    """Name of the text column."""

    null = {"keep": 1.0}
    tiny = {
        "world": "text",
        "models": ["$expert_a", "$prior", "$expert_b"],
        "ability": [-1.0, 0.0, 1.0],
        "keep": 0.25,
        "sample": 100,
        "buckets": 4096,
    }

    def __call__(self, run: Run, data: Data) -> Data:
        from scipy.sparse import vstack
        from sklearn.linear_model import LogisticRegression

        data.need(self.column, who="preselect")
        self._check()
        rows = run.numpy("preselect").permutation(len(data))[: self.sample or len(data)]
        texts = Data.of({"text": data.take(np.sort(rows))[self.column]})
        strength = predictive_strength(np.stack([self._losses(run, m, texts) for m in self.models], 1), self.ability)
        if strength.min() == strength.max():
            raise Bad(f"all {len(texts)} texts order the models alike; give models that are good at different things")
        strong, weak = extremes(strength, self.share)
        hasher = Hasher(self.ngrams, self.buckets)
        seen = vstack(list(bags(hasher, texts.take(np.r_[strong, weak]).text())))
        judge = LogisticRegression(C=1 / self.penalty, max_iter=1000)
        judge.fit(seen, np.repeat([1, 0], [len(strong), len(weak)]))
        score = np.concatenate([judge.decision_function(x) for x in bags(hasher, data.text(self.column))])
        lengths = None if self.tokens is None else row_lengths(data)
        return data.with_(preselect=score).take(take_budget(score, self.keep, self.tokens, lengths))

    def _check(self) -> None:
        if len(self.models) != len(self.ability) or len(set(self.ability)) < 2:
            raise Bad(f"{len(self.models)} models and ability={self.ability}: give one number a model, not all equal")
        if any(m.kind != "causal" for m in self.models):
            raise Bad(f"models: preselect compares causal models, not {', '.join(m.kind for m in self.models)}")
        if self.sample is not None and self.sample < 2:
            raise Bad(f"sample={self.sample}: give at least 2 rows, or none for all")
        if (self.share is not None and not 0 < self.share <= 0.5) or self.penalty <= 0:
            raise Bad(f"share={self.share} must be above 0 and at most 0.5, penalty={self.penalty} above 0")

    def _losses(self, run: Run, model: Model, texts: Data) -> np.ndarray:
        """Nats of each whole text, (N,); read with the model's own tokenizer."""
        nats = run.infer(model, texts, lambda batch, out: rowwise(model.kind, batch, out).sum(1), truncate=False)
        if not nats.isfinite().all():
            raise Bad(f"models: {model!r} gives losses that are not finite: its weights are broken")
        return nats.double().numpy()
