from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.primitives.domains import domains
from trainlore.verbs import Part, method

PAIRS = 1 << 22  # compared at a time: 32 MB


def reciprocal_rank(score: np.ndarray, query: np.ndarray) -> np.ndarray:
    """1 / rank of each score (N,) in its query's list, the highest first; `query` int64 (N,). Earlier rows win ties."""
    order = np.lexsort((np.arange(len(score)), -score, query))
    first = np.searchsorted(query[order], query[order])
    out = np.empty(len(score))
    out[order] = 1 / (np.arange(len(score)) - first + 1)
    return out


def normalised(score: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Scores (N,) moved and stretched to 0..1 in each query's list; 0.5 where all of a list are alike."""
    low, high = np.full(query.max() + 1, np.inf), np.full(query.max() + 1, -np.inf)
    np.minimum.at(low, query, score)
    np.maximum.at(high, query, score)
    reach = (high - low)[query]
    return np.where(reach > 0, (score - low[query]) / np.where(reach > 0, reach, 1.0), 0.5)


def percentile(score: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The share of its query's scores below each score (N,), by a Gaussian kernel density of Scott's width."""
    from scipy.special import ndtr

    out = np.full(len(score), 0.5)
    order = np.argsort(query, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(query[order])) + 1):
        x = score[rows]
        width = x.std(ddof=1) * len(x) ** -0.2 if len(x) > 1 else 0.0
        if width > 0:
            step = max(1, PAIRS // len(x))
            for at in np.split(rows, range(step, len(x), step)):
                out[at] = ndtr((score[at][:, None] - x) / width).mean(1)
    return out


def weight(ease: Tensor, done: float) -> Tensor:
    """The weight of rows of this ease (...) in 0..1 when the share `done` of the curriculum is over: ease + done (1 - ease)."""
    return ease + min(1.0, done) * (1 - ease)


HEURISTICS = {"rank": reciprocal_rank, "score": normalised, "kde": percentile}


@method(
    name="difficulty_curriculum",
    title="Difficulty-weighted curriculum for re-ranking",
    paper="arXiv:2004.14269",
    lit="p267",
    family="data/order",
    year=2020,
    tier="core",
    status="stable",
    code="Georgetown-IR-Lab/OpenNIR",
)
class DifficultyCurriculum(Part):
    """Weigh rows by how easy they look to a cheaper ranker, and let all weights rise to 1.

    ## What it does
    A first-stage score of each candidate (BM25, say) says how easy it is: a right answer ranked high is, and a wrong one
    ranked low. With s the heuristic's value in 0..1 within the query's list, at step t of a curriculum of m steps:

        D = s for a right answer, 1 - s for a wrong one
        W = D + (t / m) (1 - D) while t < m, and 1 from then on;     loss(row) <- W * loss(row)

        rank: s = 1 / rank      score: s = (score - min) / (max - min)      kde: s = percentile of the score

    ## Claim
    BERT and ConvKNRM on three answer-ranking sets: up to 4% more MRR and 9% more P@1 for BERT than without a curriculum,
    for pointwise and pairwise losses; nothing at inference.

    ## Cost
    None but the scores, which a ranker has; `kde` compares all pairs of a list.

    ## Fields worth tuning
    `until`, on validation data; the authors' default is 20 of their epochs. `by` with `heuristic: ease` weighs any rows
    by any column of values in 0..1.

    ## Watch out
    Weights below 1 make early steps smaller: part of any effect may be that of a warmup. With `rank` a right answer at
    rank ten starts at a tenth of the weight and a wrong one anywhere at nearly all. Where the scores know nothing, ease
    is noise. The steps of the weights show only in the loss; reports of it fall less than the model learns.

    ## Differs from the paper
    Each row's own loss is weighed, as the paper writes; its code multiplies the batch's mean loss by the batch's mean
    weight. Pointwise: for its pairwise loss put (D+ + D-) / 2 of each pair into a column and take `heuristic: ease`.
    W rises with every step, in the code with every epoch.

    ## See also
    `curriculum`, which opens rows instead of weighing them.
    """

    by: str
    """Column of the first-stage scores, higher for better candidates; of the ease itself with `heuristic: ease`."""
    heuristic: Literal["rank", "score", "kde", "ease"] = "rank"
    """How a score becomes ease."""
    query: str | None = None
    """Column that names the query a row is a candidate for; all rows are one list when left out."""
    right: int = 1
    """The value of `label` that says a row is a right answer."""
    until: float = 0.5
    """Share of training after which all rows count alike."""

    null = {"until": 0.0}
    tiny = {"world": "digits", "by": "label", "heuristic": "score"}

    def start(self, loop) -> dict:
        if not 0 <= self.until <= 1 or self.heuristic not in (*HEURISTICS, "ease"):
            raise Bad(f"until={self.until} must lie in 0..1, heuristic={self.heuristic!r} be rank, score, kde or ease")
        loop.data.need(self.by, who="difficulty_curriculum")
        score = np.asarray(loop.data[self.by])
        if score.ndim != 1 or score.dtype.kind not in "fiub" or not np.isfinite(score).all():
            raise Bad(f"difficulty_curriculum: column {self.by!r} must hold one finite number a row")
        ease = score.astype(np.float64)
        if self.heuristic != "ease":
            loop.data.need("label", who="difficulty_curriculum")
            _, query = (
                domains(loop.data, self.query, "difficulty_curriculum")
                if self.query
                else ("", np.zeros(len(ease), np.int64))
            )
            ease = HEURISTICS[self.heuristic](ease, query)
            ease = np.where(np.asarray(loop.data["label"]) == self.right, ease, 1 - ease)
        if ease.min() < 0 or ease.max() > 1:
            raise Bad(
                f"difficulty_curriculum: ease lies in 0..1, column {self.by!r} from {ease.min():g} to {ease.max():g}"
            )
        return {"ease": torch.from_numpy(ease).float()}

    def loss(self, loop, s, batch, out, inner) -> Tensor:
        losses = inner(batch, out)
        if loop.done >= self.until:
            return losses
        row = batch["row"].cpu()
        mine = weight(s["ease"][row], loop.done / self.until)
        mine = torch.where(row < 0, 1.0, mine).to(losses)  # rows that another part put in
        return losses * (mine if losses.dim() == 1 else mine[:, None])
