from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_within
from trainlore.primitives.domains import domains
from trainlore.primitives.ngrams import Hasher, bags
from trainlore.primitives.raters import linear_rater, train_rater
from trainlore.primitives.statistics import standardized
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="qurating",
    title="QuRating",
    paper="arXiv:2402.09739",
    lit="p217",
    family="data/select",
    year=2024,
    tier="llm",
    status="stable",
    code="princeton-nlp/QuRating",
)
class QuRating(Curate):
    """Learn what judges prefer from pairs of texts and sample texts by that rating.

    ## What it does
    Judges (people, or a language model asked beforehand) said of pairs of texts which is better. A rater s learns one number
    a text by the Bradley-Terry model, p being the share of votes for the one called `chosen`; all texts are rated, and rows
    drawn without replacement with odds exp(rating / temperature), the rating brought to mean 0 and standard deviation 1:

        loss = -p log sigmoid(s(chosen) - s(rejected)) - (1 - p) log sigmoid(s(rejected) - s(chosen))
        keep the top of  rating / temperature + g,    g ~ Gumbel(0, 1)

    The column `qurating` holds that rating; to train from low to high instead of choosing, order by it.

    ## Claim
    With 30 B tokens drawn from 260 B, ratings as odds give 1.3 B models lower perplexity and better in-context learning than
    the baselines; strict top-k does not, as it loses diversity. Educational value is best, level with even sampling and half
    as many steps again.

    ## Cost
    Training the rater on the pairs and one pass over the texts; with no `rater`, both are linear and need no network.

    ## Fields worth tuning
    `temperature`: 0 is strict top-k, large is random; the authors tried 1 and 2. `domains`, to keep every source's share.

    ## Watch out
    A rating knows the judges' taste for length and style too; a linear rater sees nothing but words and pairs of words.
    Texts beyond the rater's window are judged by their beginning: cut them first.
    At temperature 2 a row one deviation above the mean is only 1.6 times as likely as a mean one: mild by design.

    ## Differs from the paper
    Judgements are data (`chosen`, `rejected` and, unless all agree, `share`), not calls to a language model, and one quality is
    learned at a time (the paper's rater has four heads, of 250,000 judgements). Pairs with |2 p - 1| below `confidence` are
    left out, as by the authors. They rate long texts by windows of 512 tokens. The linear rater is ours. No warmup.

    ## See also
    preselect, dsir, curriculum.
    """

    pairs: Data
    """Text columns `chosen` and `rejected`, and optionally `share`: what part of the judges preferred `chosen`."""
    rater: Model | None = None
    """Network to be trained as rater (a copy), one number a text; none: a linear rater over hashed n-grams."""
    keep: float = 0.1
    """Share of the rows to keep, above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens (words of the text where it is not encoded): a number above 1, or a share of all at most 1."""
    temperature: float = 1.0
    """What standardized ratings are divided by; 0 takes the highest."""
    confidence: float = 0.5
    """Least |2 share - 1| of a pair that is learned from."""
    domains: str | None = None
    """Column of sources, each of which gets its part of the budget; none: one budget for all."""
    penalty: float = 0.1
    """Of the linear rater: weight of half its squared length against the summed losses of the pairs."""
    buckets: int = 1 << 18
    """Of the linear rater: number of buckets that words and pairs of words are hashed into."""
    steps: int = 200
    """Of the network: training steps."""
    batch_size: int = 512
    """Of the network: pairs a step."""
    lr: float = 5e-5
    """Of the network: learning rate."""
    column: str = "text"
    """Name of the text column."""

    null = {"keep": 1.0}
    tiny = {"world": "pairs", "pairs": "$data", "column": "chosen", "keep": 0.25, "buckets": 4096}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(self.column, who="qurating")
        self.pairs.need("chosen", "rejected", who="qurating's pairs")
        if self.temperature < 0 or self.penalty <= 0 or min(self.steps, self.batch_size) < 1:
            found = f"temperature={self.temperature}, penalty={self.penalty}, steps={self.steps}, batch_size={self.batch_size}"
            raise Bad(f"{found}: temperature must be at least 0, penalty above 0, the others at least 1")
        group = np.zeros(len(data), np.int64) if self.domains is None else domains(data, self.domains, "qurating")[1]
        share = (
            np.asarray(self.pairs["share"], np.float64) if "share" in self.pairs.columns else np.ones(len(self.pairs))
        )
        if not ((share >= 0) & (share <= 1)).all():
            raise Bad("share holds values outside 0 to 1; it is the part of the judges who preferred `chosen`")
        sure = np.abs(2 * share - 1) >= self.confidence
        if not sure.any():
            raise Bad(f"confidence={self.confidence}: none of the {len(share)} pairs is that sure; lower it")
        rate = self._linear if self.rater is None else self._network
        score = standardized(rate(run, self.pairs.where(sure), share[sure], data))
        noise = run.numpy("qurating").gumbel(size=len(score))
        order = score / self.temperature + noise if self.temperature else score
        lengths = None if self.tokens is None else row_lengths(data)
        return data.with_(qurating=score).take(take_within(order, group, self.keep, self.tokens, lengths))

    def _linear(self, run: Run, pairs: Data, share: np.ndarray, data: Data) -> np.ndarray:
        """Ratings (N,) by the best linear rater."""
        from scipy.sparse import vstack

        hasher = Hasher(2, self.buckets)
        chosen, rejected = (vstack(list(bags(hasher, pairs.text(side)))) for side in ("chosen", "rejected"))
        weight = linear_rater(chosen - rejected, share, self.penalty)
        return np.concatenate([x @ weight for x in bags(hasher, data.text(self.column))])

    def _network(self, run: Run, pairs: Data, share: np.ndarray, data: Data) -> np.ndarray:
        """Ratings (N,) of a copy of the rater, trained in full."""
        model = train_rater(run, self.rater.copy(), pairs, share, self.steps, self.batch_size, self.lr)
        plain = Data.of({"text": data[self.column]})
        return run.infer(model, plain, lambda batch, out: out.float().reshape(len(batch["row"]))).double().numpy()
