from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.ngrams import Hasher
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def bradley_terry(chosen: Tensor, rejected: Tensor, share: Tensor) -> Tensor:
    """Loss of each pair, (B,): ratings chosen, rejected (B,), and the share (B,) of judges who preferred `chosen`."""
    return torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, share, reduction="none")


def standardized(score: np.ndarray) -> np.ndarray:
    """Scores (N,) with mean 0 and standard deviation 1; all 0 where they are equal."""
    return (score - score.mean()) / (score.std() or 1.0)


def linear_rater(difference: Any, share: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (buckets,) of the rater x . w with the least Bradley-Terry loss, summed, plus penalty / 2 of |w|^2.

    difference (P, buckets), sparse: chosen minus rejected; share (P,). A pair counts both ways, by its votes.
    """
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    judge = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-6, max_iter=1000)
    judge.fit(vstack([difference, difference]), np.repeat([1, 0], len(share)), np.concatenate([share, 1 - share]))
    return judge.coef_[0]


def bags(hasher: Hasher, texts: Iterable[str]) -> Iterator[Any]:
    """Hashed n-grams of texts as sparse counts (R, buckets) with rows of length 1, a chunk of whole rows at a time."""
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    for g in hasher.grams(texts):
        yield normalize(csr_matrix((np.ones(len(g.row)), (g.row, g.bucket)), shape=(len(g.words), hasher.buckets)))


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
    a text from them, by the Bradley-Terry model with p the share of votes for the one called `chosen`:

        loss = -p log sigmoid(s(chosen) - s(rejected)) - (1 - p) log sigmoid(s(rejected) - s(chosen))

    All texts are rated, ratings brought to mean 0 and standard deviation 1, and rows drawn without replacement with odds
    exp(rating / temperature), which is the top of

        rating / temperature + g,    g ~ Gumbel(0, 1)

    The column `qurating` holds the standardized rating; to train from low to high instead of choosing, order by it.

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
    At temperature 2 a row one deviation above the mean is only 1.6 times as likely as a mean one: the choice is mild by design.

    ## Differs from the paper
    The judgements are data (columns `chosen`, `rejected` and, unless all votes agree, `share`) instead of calls to a language
    model, and one quality is learned at a time (the paper's rater has four heads, of 250,000 judgements). Pairs with
    |2 p - 1| below `confidence` are left out, as in the authors' script. The paper rates long texts by windows of 512
    tokens. The linear rater is ours. No warmup of the learning rate.

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
        given = "share" in self.pairs.columns
        share = np.asarray(self.pairs["share"], np.float64) if given else np.ones(len(self.pairs))
        if not ((share >= 0) & (share <= 1)).all():
            raise Bad("share holds values outside 0 to 1; it is the part of the judges who preferred `chosen`")
        sure = np.abs(2 * share - 1) >= self.confidence
        if not sure.any():
            raise Bad(f"confidence={self.confidence}: none of the {len(share)} pairs is that sure; lower it")
        rate = self._linear if self.rater is None else self._network
        score = standardized(rate(run, self.pairs.where(sure), share[sure], data))
        order = score
        if self.temperature:
            order = score / self.temperature + run.numpy("qurating").gumbel(size=len(score))
        return data.with_(qurating=score).take(self._chosen(data, order))

    def _chosen(self, data: Data, order: np.ndarray) -> np.ndarray:
        """The rows that the budget pays for, in each domain its part of it."""
        lengths = None if self.tokens is None else row_lengths(data)
        if self.domains is None:
            return take_budget(order, self.keep, self.tokens, lengths)
        data.need(self.domains, who="qurating")
        tokens = self.tokens
        if tokens is not None and lengths is not None and tokens > 1:
            tokens = min(1.0, tokens / lengths.sum())
        names, which = np.unique(np.asarray(data[self.domains]).astype(str), return_inverse=True)
        taken = []
        for mine in (np.flatnonzero(which == d) for d in range(len(names))):
            its = None if lengths is None else lengths[mine]
            taken.append(mine[take_budget(order[mine], self.keep, tokens, its)])
        return np.sort(np.concatenate(taken))

    def _linear(self, run: Run, pairs: Data, share: np.ndarray, data: Data) -> np.ndarray:
        """Ratings (N,) by the best linear rater."""
        from scipy.sparse import vstack

        hasher = Hasher(2, self.buckets)
        chosen, rejected = (vstack(list(bags(hasher, pairs.text(side)))) for side in ("chosen", "rejected"))
        weight = linear_rater(chosen - rejected, share, self.penalty)
        return np.concatenate([x @ weight for x in bags(hasher, data.text(self.column))])

    def _network(self, run: Run, pairs: Data, share: np.ndarray, data: Data) -> np.ndarray:
        """Ratings (N,) of a copy of the rater, trained in full."""
        model = self.rater.copy()
        both = [*pairs.text("chosen"), *pairs.text("rejected")]
        texts, n = model.encode(Data.of({"text": both}), truncate=True), len(pairs)
        votes = torch.from_numpy(share).float().to(model.device)
        optimizer = torch.optim.AdamW(model.net.parameters(), lr=self.lr, weight_decay=0.1)
        model.net.train()
        with run.meter.running():
            for t in range(self.steps):
                drawn = run.numpy("qurating", "pairs", t).choice(n, min(n, self.batch_size), replace=False)
                batch = texts.batch(np.concatenate([drawn, drawn + n]), model)
                with run.global_rng("qurating", t):
                    rated = model({k: v.to(model.device) for k, v in batch.items()}).float()
                if rated.numel() != 2 * len(drawn):
                    raise Bad(
                        f"rater={model!r} gives {tuple(rated.shape)} for {2 * len(drawn)} texts: it must give one number each"
                    )
                chosen, rejected = rated.flatten().chunk(2)
                loss = bradley_terry(chosen, rejected, votes[drawn]).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
                optimizer.step()
        plain = Data.of({"text": data[self.column]})
        return run.infer(model, plain, lambda batch, out: out.float().reshape(len(batch["row"]))).double().numpy()
