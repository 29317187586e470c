"""The loss a model has when no part says otherwise: unreduced, content with soft targets."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad

ALIGNED = ("masked", "seq2seq", "tagger")  # logits at a place speak of the label at that place


def targets(kind: str, batch: dict) -> Tensor:
    """The labels as the losses see them: of a causal model those of the next place (B,T-1), else as they are.

    Raises Bad where the rows have none."""
    if "labels" not in batch:
        there = ", ".join(k for k in batch if k != "row")
        raise Bad(f"the rows have no column 'label' or 'labels'; a batch of them holds {there}")
    labels = batch["labels"]
    return labels[:, 1:] if kind == "causal" else labels


def aligned(kind: str, out: Tensor) -> Tensor:
    """The logits that speak of `targets`: of a causal model all but the last place (B,T-1,V)."""
    return out[:, :-1] if kind == "causal" else out


LARGE = 1 << 20  # logits from which on the loss is taken a piece at a time
PIECE = {"cpu": 1 << 18}  # logits of a piece: what fits the cache of a core, with its gradient
ELSEWHERE = 1 << 24


def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """-log softmax(logits (N,V))[wanted (N,)], float32 (N,); 0 where `wanted` is -100.

    Large logits are read a piece at a time: torch's own keeps three more copies of them in float32 and takes twice as long."""
    whole = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if logits.numel() < LARGE or whole:
        return F.cross_entropy(logits.float(), wanted, reduction="none", ignore_index=-100)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _CrossEntropy.apply(logits, wanted)
    size, at = _pieces(logits), wanted.clamp(min=0)[:, None]  # one kernel makes a piece, half the time of the sum alone
    pieces = zip(logits.split(size), at.split(size), strict=True)
    told = torch.cat([y.float().log_softmax(-1).gather(1, z)[:, 0] for y, z in pieces])
    return torch.where(wanted == -100, 0.0, -told)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        lse = torch.cat([piece.float().logsumexp(-1) for piece in logits.split(_pieces(logits))])
        picked = logits.gather(1, wanted.clamp(min=0)[:, None])[:, 0].float()
        ctx.save_for_backward(logits, wanted, lse)
        return torch.where(wanted == -100, 0.0, lse - picked)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, wanted, lse = ctx.saved_tensors
        grad = torch.where(wanted == -100, 0.0, grad)[:, None]
        at = wanted.clamp(min=0)[:, None]
        if torch.is_grad_enabled():  # somebody will differentiate this once more
            return (grad * (logits.float().softmax(-1).scatter_add(1, at, -torch.ones_like(grad)))).to(
                logits.dtype
            ), None
        out, size = torch.empty_like(logits), _pieces(logits)
        for to, y, ls, z, g in zip(*(t.split(size) for t in (out, logits, lse[:, None], at, grad)), strict=True):
            to.copy_(torch.sub(y, ls).exp_().mul_(g).scatter_add_(1, z, -g))
        return out, None


def _pieces(logits: Tensor) -> int:
    return max(1, PIECE.get(logits.device.type, ELSEWHERE) // logits.shape[1])


def rowwise(kind: str, batch: dict, out: Tensor) -> Tensor:
    """Losses in nats, unreduced: (B,) a row, or (B,T) a token with 0 where the label is -100 ((B,T-1) if causal).

    `batch["labels"]`: token ids (B,T), class ids (B,), shares (B,K) or numbers (B,)."""
    if kind in ("encoder", "denoiser"):
        raise Bad(f"a model of kind {kind} has no loss of its own: give a part that owns `loss`")
    y = targets(kind, batch)
    if kind == "regressor":
        return (out.reshape(y.shape).float() - y.float()).square().reshape(len(y), -1).mean(1)
    if kind == "causal" or kind in ALIGNED:
        # Of a causal model the labels move, not the logits: a slice of those would be copied forward and backward.
        wanted = F.pad(y, (0, 1), value=-100) if kind == "causal" else y
        flat = cross_entropy(out.flatten(0, -2), wanted.flatten())
        return flat.reshape(wanted.shape)[:, : y.shape[1]]
    return F.cross_entropy(out.float(), y if y.is_floating_point() else y.long(), reduction="none")


def per_row(losses: Tensor, batch: dict, kind: str) -> Tensor:
    """Each row's mean loss (B,) over its own targets; 0 for a row that has none."""
    if losses.dim() == 1:
        return losses
    counted = (targets(kind, batch) != -100).sum(1)
    return losses.sum(1) / counted.clamp(min=1)


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """log p(label) at every place of logits (..., V) and labels (...); 0 where the label is -100."""
    picked = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return torch.where(labels >= 0, picked, 0.0)
