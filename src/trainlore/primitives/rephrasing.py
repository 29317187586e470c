"""What a rephrasing of an input is worth to a task, the loss of the one who writes it, and predicting with several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.primitives.losses import rowwise

if TYPE_CHECKING:
    from trainlore.nouns import Model
    from trainlore.runs import Run

__all__ = ["blend", "log_p", "marginal_loss", "rewards", "task_rows"]


def rewards(own: Tensor, of_samples: Tensor) -> Tensor:
    """What each rephrasing adds to the log probability of the right answer, as a z-score among those of its row.

    own: log p(y | x) (B,); of_samples: log p(y | z) (B, M). Returns (B, M)."""
    gain = of_samples - own[:, None]
    return (gain - gain.mean(1, keepdim=True)) / (gain.std(1, keepdim=True) + 1e-12)


def marginal_loss(written: Tensor, reward: Tensor, fixed: Tensor, beta: float) -> Tensor:
    """Negative log marginal likelihood over the samples of each row, and a pull to the first paraphraser: ().

    written: log P(z | x) with a gradient, reward, fixed: log P_0(z | x) of the paraphraser at the start; all (B, M).
    """
    pull = ((written.detach() - fixed + 1) * written).mean()  # its gradient is that of KL(P || P_0), from samples of P
    return -torch.logsumexp(written + reward, 1).mean() + beta * pull


def blend(own: Tensor, of_samples: Tensor) -> Tensor:
    """Log probabilities to predict by: (N, K) of the inputs and (N, M, K) of their rephrasings -> (N, K)."""
    return 0.5 * own + 0.5 * of_samples.mean(1)


def task_rows(model: Model, texts: list[str], labels: np.ndarray) -> Data:
    """Rows as the task's model reads them: classes of a classifier, else the label as what follows the text."""
    if model.kind not in ("causal", "classifier"):
        raise Bad(f"rephrasings are judged by a causal model or a classifier, not a {model.kind}")
    if model.kind == "classifier":
        return Data.of({"text": texts, "label": labels})
    return Data.of({"prompt": texts, "completion": [f" {y}" for y in labels.tolist()]})


def log_p(run: Run, model: Model, rows: Data) -> Tensor:
    """Log probability of each row's answer, (N,)."""

    def told(batch: dict[str, Any], out: Tensor) -> Tensor:
        losses = rowwise(model.kind, batch, out)
        return -(losses if losses.dim() == 1 else losses.sum(1))

    return run.infer(model, rows, told)
