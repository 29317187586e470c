"""Centers and their contexts: pairs out of a stream of tokens, and the loss of skip-gram with negative sampling."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def sgns(center: Tensor, context: Tensor, negatives: Tensor) -> Tensor:
    """Skip-gram losses (B,) with negative sampling, of vectors center (B, d), context (B, d) and negatives (B, K, d)."""
    good = F.logsigmoid((center * context).sum(-1))
    return -good - F.logsigmoid(-torch.einsum("bd,bkd->bk", center, negatives)).sum(-1)


def skipgrams(document: np.ndarray, centers: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (P,) of centers and of their contexts: up to `window` places away in the same document (N,) int."""
    steps = np.concatenate([np.arange(-window, 0), np.arange(1, window + 1)])
    place = centers[:, None] + steps
    inside = (place >= 0) & (place < len(document))
    inside &= document[place.clip(0, len(document) - 1)] == document[centers][:, None]
    return np.repeat(centers, inside.sum(1)), place[inside]
