from __future__ import annotations

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.greedy import embeddings, rank_within
from trainlore.primitives.kmeans import k_means
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def turns(cluster: np.ndarray, score: np.ndarray) -> np.ndarray:
    """When each row is taken, (N,) float64, lower first: the r-th best of a cluster of n rows at (r + 1/2) / n, r from 0.

    Any prefix of that order holds nearly the same share of each cluster. A score of -inf is never taken: infinity."""
    good = np.isfinite(score)
    turn = np.full(len(score), np.inf)
    rank, size = rank_within(cluster[good], score[good])
    turn[good] = (rank + 0.5) / size
    return turn


@method(
    name="codeact",
    title="CodeACT (complexity and diversity aware sampling)",
    paper="arXiv:2408.02193",
    lit="p187",
    family="data/select",
    year=2024,
    tier="llm",
    status="stable",
    code="Kyle-Lyu/CodeACT",
)
class CodeACT(Curate):
    """Keep of each cluster of instructions the rows whose answers the question helps least to predict.

    ## What it does

    The instruction-following difficulty of question q and answer a under the base model is how much of the answer's
    perplexity is left when the question is given:

        ifd(q, a) = exp(mean loss of a after q) / exp(mean loss of a alone)

    Rows of 1 or more, which the question does not help, are dropped. The instructions are embedded and cut by k-means, and
    the hardest share of each cluster is kept. The column `codeact` is the difficulty.

    ## Claim

    DeepSeek-Coder-6.7B on 40% of EVOL-Instruct against all of it: 8.6% better on HumanEval, with 78% less training time and
    27% less peak memory (both with `dynamic_pack`).

    ## Cost

    Two forward passes over the pool by the base model, one by the encoder, and k-means (rows x clusters x dimensions x 20).

    ## Fields worth tuning

    `keep`; `clusters` grows with the pool.

    ## Watch out

    An answer that does not belong to its question has a difficulty of about 1: those just below 1 are kept first.
    Short answers have noisy difficulties, and so lie at both ends. Here 40% of the rows by it were no better
    than random ones: on texts the held-out losses cannot be told apart (+0.01 nats, n = 10), and on sums of one digit, where what is
    kept must cover all problems, it was far worse (0.60 against 0.23, n = 5).

    ## Differs from the paper

    The authors keep `keep` of the rows below 1 in each cluster; here the budget is a share of all rows, and one that the rows
    below 1 cannot meet is an error. Alone, the answer follows the tokenizer's beginning-of-text token; without one, its
    first token is not counted. They embed with a sentence encoder; without an `encoder` the base model serves.

    ## See also

    dynamic_pack (its other half), learning_percentage, kmeans_quality, random_rows.
    """

    model: Model
    """The base model, by whose perplexity difficulty is judged."""
    encoder: Model | None = None
    """Model that embeds the instructions; without it the base model does."""
    keep: float = 0.4
    """Share of the rows to keep, above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens (words of the text where it is not encoded): a number above 1, or a share of all at most 1."""
    clusters: int = 10
    """Number of clusters, at most the number of rows; 1 leaves diversity out."""

    null = None  # rows that the question does not help are always dropped
    tiny = {"world": "sums", "model": "$model", "keep": 0.2, "clusters": 4}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need("prompt", "completion", who="codeact")
        if self.model.kind != "causal":
            raise Bad(f"codeact needs a causal model to judge answers with, not a {self.model.kind}")
        if not 1 <= self.clusters <= len(data):
            raise Bad(f"clusters={self.clusters}: give 1 to {len(data)}, the number of rows")
        start = getattr(self.model.tokenizer, "bos_token", None) or ""
        asked = self._loss(run, Data.of({"prompt": data["prompt"], "completion": data["completion"]}))
        alone = self._loss(run, Data.of({"prompt": [start] * len(data), "completion": data["completion"]}))
        difficulty = np.exp(asked - alone)
        questions = Data.of({"text": data["prompt"]})
        points = embeddings(run, questions, self.encoder or self.model, "", "codeact")
        points = torch.nn.functional.normalize(points, dim=1)
        cluster, _ = k_means(points.numpy(), self.clusters, run.numpy("codeact"))
        turn = turns(cluster, np.where(difficulty < 1, difficulty, -np.inf))
        lengths = None if self.tokens is None else row_lengths(data)
        return data.with_(codeact=difficulty).take(take_budget(-turn, self.keep, self.tokens, lengths))

    def _loss(self, run: Run, pairs: Data) -> np.ndarray:
        """Mean loss of the answer's tokens (N,), in nats."""
        found = run.infer(self.model, pairs, lambda b, out: per_row(rowwise("causal", b, out), b, "causal").double())
        return found.numpy()
