from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model
from trainlore.primitives.teaching import soft_cross_entropy
from trainlore.verbs import Part, method


def disambiguated(logits: Tensor, candidates: Tensor) -> Tensor:
    """The model's probabilities among the candidates alone: logits (B, K), bool (B, K) -> float32 (B, K)."""
    return logits.float().masked_fill(~candidates, -torch.inf).softmax(-1)


def purified(mean: Tensor, candidates: Tensor, threshold: float) -> Tensor:
    """Candidates bool (N, K) without those whose mean confidence (N, K) is below `threshold` of the row's largest."""
    return candidates & (mean >= threshold * mean.amax(1, keepdim=True))


def likely(shares: Tensor, labels: Tensor, doubt: float) -> Tensor:
    """Candidate sets bool (N, K): the label (N,), and each class with at least `doubt` of the largest share (N, K)."""
    return (shares >= doubt * shares.amax(1, keepdim=True)).scatter(1, labels[:, None], True)


@method(
    name="progressive_purification",
    title="POP (progressive purification)",
    paper="arXiv:2206.00830",
    lit="p348",
    family="data/label",
    year=2023,
    tier="core",
    status="stable",
    code="palm-ml/POP",
)
class ProgressivePurification(Part):
    """Learn from sets of candidate labels that shrink as the model becomes sure.

    ## What it does
    A row has a set S of classes one of which is right (column `candidates`, 0 or 1 a class). The loss is PRODEN's: the
    target is what the model itself made of the candidates when it last saw the row. After `warm_up`, every `window`
    epochs, candidates that got little on average are dropped for good, and where hardly any drops out the threshold
    rises:

        loss = -sum_k c_k log p_k            c_k <- p_k / sum_{j in S} p_j after each visit
        S <- { k in S : mean c_k >= threshold * max_j mean c_j }
        threshold <- threshold (1 + growth)  if fewer than 0.01% of all entries changed and it is below 0.4

    Without the column `doubts` makes the sets: the given label and what that model finds likely too.

    ## Claim
    The region where the model agrees with the best possible classifier grows with the rounds, also for candidates that
    depend on the instance; better than earlier losses on image benchmarks and on real partial labels.

    ## Cost
    No forward or backward of its own. Memory: 9 bytes x rows x classes (9 GB at a million rows of 1,000 classes).

    ## Fields worth tuning
    `threshold` and `growth` for short trainings; `warm_up` until the model is better than its candidates.

    ## Watch out
    What is dropped never comes back: with a high threshold early, mistakes are learned for good. Not reproduced here:
    on digits the authors' defaults changed test accuracy by -0.1 points against PRODEN alone (20 seeds, p 0.9); a
    threshold from 0.01 that rose by a fifth every epoch after the third, our claim at first, cost 1.2 +- 0.5. The
    default growth is a tenth in 500 epochs, next to nothing. It owns the loss: labels are not looked at.

    ## Differs from the paper
    The text drops a candidate by the difference to the largest; the authors' code, followed here, by the ratio of
    means. Their augmented views and their consistency are left out. The softmax is over the candidates alone, where
    theirs can underflow to 0 and drop one in the warm-up. `doubts` is ours.

    ## See also
    `label_model` for votes of functions; `self_training`.
    """

    threshold: float = 1e-3
    """Share of the largest confidence below which a candidate is dropped, at first; 0 never drops any (PRODEN)."""
    growth: float = 1e-3
    """How much the threshold rises when hardly any candidate drops out."""
    warm_up: float = 20.0
    """Epochs before the first purification."""
    window: int = 5
    """Epochs over which confidences are averaged, from one purification to the next."""
    doubts: Model | None = None
    """Model whose likely classes join the label as candidates; only for rows without `candidates`."""
    doubt: float = 0.05
    """Share of the likeliest class's probability from which on a class is a candidate too; with `doubts`."""

    null = None  # the rows have no loss but this one
    tiny = {"world": "digits", "doubts": "$teacher", "doubt": 0.001, "warm_up": 0.2, "window": 1, "threshold": 0.1}
    alone = "it remembers something of every row in its loss, and each process would know its own rows only"

    def start(self, loop: Any) -> dict[str, Any]:
        if not 0 <= self.threshold < 1 or self.growth < 0 or self.warm_up < 0 or self.window < 1:
            said = f"threshold={self.threshold}, growth={self.growth}, warm_up={self.warm_up}, window={self.window}"
            raise Bad(f"{said}: give 0 to below 1, at least 0, at least 0, at least 1")
        if loop.model.kind != "classifier":
            raise Bad(f"progressive_purification is for classifiers, not a {loop.model.kind}")
        sets = self._candidates(loop).to(loop.device)
        even, now = sets.float() / sets.sum(1, keepdim=True), {"threshold": self.threshold, "epoch": 0, "summed": 0}
        return {"candidates": sets, "confidence": even, "total": torch.zeros_like(even), **now}

    def _candidates(self, loop: Any) -> Tensor:
        data = loop.data
        if "candidates" in data.columns:
            sets = data["candidates"]
            if getattr(sets, "ndim", 0) != 2 or not np.isin(sets, (0, 1)).all():
                raise Bad("column 'candidates' must hold a 0 or 1 for each class in every row")
            if len(empty := data.ids[~sets.astype(bool).any(1)]):
                raise Bad(f"{len(empty)} rows have no candidate, the first {empty[0]}: drop them or allow every class")
            return torch.from_numpy(sets.astype(bool))
        if self.doubts is None or "label" not in data.columns:
            raise Bad(f"needs column 'candidates', or 'label' and `doubts`; there are {', '.join(data.columns)}")
        if not 0 < self.doubt <= 1:
            raise Bad(f"doubt={self.doubt} must be above 0 and at most 1: it is a share of the largest probability")
        shares = loop.run.infer(self.doubts, data, lambda batch, out: out.float().softmax(-1))
        if not shares.isfinite().all():
            raise Bad("the shares that `doubts` gives are not finite: has it diverged, or is there NaN in the rows?")
        return likely(shares, torch.from_numpy(data["label"].astype(np.int64)), self.doubt)

    def loss(self, loop: Any, s: dict[str, Any], batch: Batch, out: Tensor) -> Tensor:
        rows = batch["row"]
        if out.shape[1] != s["candidates"].shape[1]:
            raise Bad(f"candidates are of {s['candidates'].shape[1]} classes, the model knows {out.shape[1]}")
        losses = soft_cross_entropy(out, s["confidence"][rows])
        s["confidence"][rows] = disambiguated(out.detach(), s["candidates"][rows])
        return losses

    def watch(self, loop: Any, s: dict[str, Any], record: dict[str, Any]) -> None:
        epoch = loop.t * loop.size // len(loop.data)
        if epoch == s["epoch"]:
            return
        s["epoch"] = epoch
        s["total"] += s["confidence"]
        s["summed"] += 1
        if s["summed"] < self.window:
            return
        if epoch >= self.warm_up:
            mean = s["total"] / s["summed"]
            left = purified(mean, s["candidates"], s["threshold"])
            changed, kept = int((left != s["candidates"]).sum()), mean * left
            s["candidates"], s["confidence"] = left, kept / kept.sum(1, keepdim=True)
            if s["threshold"] < 0.4 and changed < 1e-4 * left.numel():
                s["threshold"] *= 1 + self.growth
        s["total"], s["summed"] = torch.zeros_like(s["total"]), 0
