"""Raters: one number a text, learned from pairs of which judges said what is better (Bradley and Terry, 1952)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model

if TYPE_CHECKING:
    from trainlore.runs import Run

__all__ = ["bradley_terry", "linear_rater", "train_rater"]


def bradley_terry(chosen: Tensor, rejected: Tensor, share: Tensor) -> Tensor:
    """Loss of each pair, (B,): ratings chosen, rejected (B,), and the share (B,) of judges who preferred `chosen`."""
    return torch.nn.functional.binary_cross_entropy_with_logits(chosen - rejected, share, reduction="none")


def linear_rater(difference: Any, share: np.ndarray, penalty: float) -> np.ndarray:
    """Weights (D,) of the rater x . w with the least Bradley-Terry loss, summed, plus penalty / 2 of |w|^2.

    difference (P, D), sparse: chosen minus rejected; share (P,). A pair counts both ways, by its votes.
    """
    from scipy.sparse import vstack
    from sklearn.linear_model import LogisticRegression

    judge = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-6, max_iter=1000)
    judge.fit(vstack([difference, difference]), np.repeat([1, 0], len(share)), np.concatenate([share, 1 - share]))
    return judge.coef_[0]


def train_rater(
    run: Run, model: Model, pairs: Data, share: np.ndarray, steps: int, batch_size: int, lr: float
) -> Model:
    """A network of one number a text, trained in place on the texts `chosen` and `rejected` of pairs, with share (P,)."""
    n = len(pairs)
    texts = model.encode(Data.of({"text": [*pairs.text("chosen"), *pairs.text("rejected")]}), truncate=True)
    votes = torch.from_numpy(share).float().to(model.device)
    optimizer = torch.optim.AdamW(model.net.parameters(), lr=lr, weight_decay=0.1)
    model.net.train()
    with run.meter.running():
        for t in range(steps):
            drawn = run.numpy("rater", "pairs", t).choice(n, min(n, batch_size), replace=False)
            batch = texts.batch(np.concatenate([drawn, drawn + n]), model)
            with run.global_rng("rater", t):
                rated = model({k: v.to(model.device) for k, v in batch.items()}).float()
            if rated.numel() != 2 * len(drawn):
                raise Bad(f"rater={model!r} gives {tuple(rated.shape)} for {2 * len(drawn)} texts, not one number each")
            chosen, rejected = rated.flatten().chunk(2)
            loss = bradley_terry(chosen, rejected, votes[drawn]).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.net.parameters(), 1.0)
            optimizer.step()
    return model
