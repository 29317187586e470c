from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def decay_at(t: int, decay: float, warmup: float = 0.0) -> float:
    """The decay at update t (from 1): min(decay, 1 - t^-warmup); without a warmup, `decay`."""
    return min(decay, 1 - t**-warmup) if warmup else decay


def mixed(total: float, decay: float) -> tuple[float, float]:
    """One step of a debiased average: the weight all updates carry so far -> (that weight now, share of the newest).

    mean_t = sum_i (1 - d_i) prod_{j > i} d_j x_i / total_t, kept as mean += share * (x - mean): the division is
    folded into the share, so the mean is always a mean. total = 1 from the start is the plain, biased average.
    """
    total = decay * total + (1 - decay)
    return total, (1 - decay) / total if total else 1.0


@method(
    name="ema",
    title="Exponential moving average of the weights (EMA)",
    paper="arXiv:2411.18704",
    family="train/objective",
    year=2024,
    tier="core",
    status="stable",
)
class EMA(Part):
    """Hand on a running average of the weights instead of the last ones.

    ## What it does
    After every step, for every weight and real-valued buffer:

        mean <- mean + (1 - d) / (1 - d^t) * (weight - mean)

    with d = min(decay, 1 - t^-warmup) if there is a warmup (1 - d^t is then the product of the decays). The first
    weights carry no weight of their own. Training is not touched; the mean is what is evaluated and handed on.

    ## Claim
    A study of it on image classification (arXiv:2411.18704): better than the last weights of the same run, most of all
    early and with noisy labels, better calibrated, and with less need of a decaying learning rate.

    ## Cost
    One copy of the weights in float32, one pass over them a step.

    ## Fields worth tuning
    `decay`: an average over about 1 / (1 - decay) steps; a tenth to a hundredth of the run.

    ## Watch out
    With a schedule that ends at a rate of 0 there is little left to average away. The average of sparse weights whose
    zeros moved is not sparse: the parts that prune mask once more when they detach. Running statistics of batch
    normalization are averaged too, which is close to, not equal to, recomputing them.

    ## Differs from the paper
    There the average starts at the first weights (`debias: false`).

    ## See also
    wsd, which averages by letting the rate fall.
    """

    decay: float = 0.999
    """How much of the average a step keeps; it looks back about 1 / (1 - decay) steps."""
    warmup: float = 0.0
    """Power of the decay's warmup, 1 - t^-warmup; 2/3 or 3/4 are usual, 1 is the plain mean, 0 is none."""
    debias: bool = True
    """Weigh the steps so that they add up to 1, and the weights before training count for nothing."""

    ranges = {"decay": [0.9, 0.999]}
    null = {"decay": 0.0}
    tiny = {"world": "digits", "decay": 0.9}
    sharded = True

    def start(self, loop):
        if not 0 <= self.decay < 1:
            raise Bad(f"decay={self.decay} must be in [0, 1): 0 is the last weights, 0.999 a long average")
        if self.warmup < 0:
            raise Bad(f"warmup={self.warmup} is a power: give 0 (none) or more")
        mean = {k: _wide(v).clone() for k, v in _own(loop.model.net.state_dict()).items()}
        return {"mean": mean, "total": 0.0 if self.debias else 1.0}

    @torch.no_grad()
    def watch(self, loop, s, record):
        s["total"], share = mixed(s["total"], decay_at(record["t"], self.decay, self.warmup))
        now = _own(loop.model.net.state_dict())
        torch._foreach_lerp_([s["mean"][k] for k in now], [_wide(v) for v in now.values()], share)

    def readout(self, loop, s):
        now = loop.model.net.state_dict()
        first = {_place(v): k for k, v in _own(now).items()}
        return {k: s["mean"][first[_place(v)]].to(v.dtype) if _place(v) in first else v for k, v in now.items()}


def _wide(v: Tensor) -> Tensor:
    """At least float32: an update of a thousandth is lost in half precision."""
    return v.detach().to(torch.promote_types(v.dtype, torch.float32))


def _place(v: Tensor) -> tuple[int, torch.Size]:
    return getattr(v, "_local_tensor", v).data_ptr(), v.shape  # of a weight shared out, this process's share


def _own(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The real-valued entries of a state dict, tied ones once."""
    first: dict[tuple[int, torch.Size], str] = {}
    for k, v in state.items():
        if v.is_floating_point() and v.numel():
            first.setdefault(_place(v), k)
    return {k: state[k] for k in first.values()}
