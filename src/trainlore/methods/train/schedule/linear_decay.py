from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.verbs import Part, method

POINTS = 10_000  # of the record of gradient norms; a longer run is averaged down to this


def linear_decay(done: float, one: float, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Factor of the learning rate at the step that starts at `done` (share of the budget) and is `one` long."""
    up = min(1.0, (done + one) / warmup) if warmup > 0 else 1.0
    return up * (floor + (1 - floor) * max(0.0, 1 - done))


def refine(norms: Sequence[float] | np.ndarray, adaptive: bool = True, window: float = 0.1) -> np.ndarray:
    """The schedule that observed gradient norms ask for: norms (T,) -> factors (T,) float64, largest 1, last 0.

    adaptive: l1 norms under Adam and its kin, weighed by 1 / g; else l2 norms under SGD, weighed by 1 / g^2.
    `window`: width of the median filter, as a share of T.
    """
    from scipy.ndimage import median_filter

    g = np.asarray(norms, dtype=np.float64)
    g = g[np.isfinite(g)]
    if len(g) < 2 or not (g >= 0).all() or g.max() == 0:
        raise Bad(f"{len(g)} usable gradient norms: give at least 2 that are not negative and not all 0")
    width = 2 * (int(window * len(g)) // 2) + 1
    # both ends are mirrored: a rise at the end is kept, and one odd first step cannot own the schedule
    smooth = np.maximum(median_filter(g, size=width, mode="mirror"), 1e-12 * g.max())
    weight = 1 / smooth if adaptive else smooth**-2.0
    later = np.append(np.cumsum(weight[::-1])[::-1][1:], 0.0)  # sum of the weights still to come
    schedule = weight * later
    return schedule / schedule.max()


def at(schedule: np.ndarray, done: float) -> float:
    """A schedule (T,) read at a share of the budget; a run of T steps reads every entry exactly."""
    return float(np.interp(done * len(schedule), np.arange(len(schedule)), schedule))


def thinned(norms: list[float], every: int) -> tuple[list[float], int]:
    """A record that grew past twice POINTS, averaged in pairs; `every` is how many steps an entry stands for."""
    if len(norms) < 2 * POINTS:
        return norms, every
    return np.asarray(norms).reshape(-1, 2).mean(1).tolist(), 2 * every


@method(
    name="linear_decay",
    title="Linear decay and schedule refinement",
    paper="arXiv:2310.07831",
    lit="p241",
    code="facebookresearch/adaptive_scheduling",
    family="train/schedule",
    year=2023,
    tier="core",
    status="stable",
)
class LinearDecay(Part):
    """Let the learning rate fall in a straight line, or along the line an earlier run's gradient norms ask for.

    ## What it does
    Without `observed`: rate = floor + (1 - floor) * (1 - done), after a warmup.
    With `observed`, a model trained with this part before, whose gradient norms g_t were kept:

        g~_t = median of g around t, over a tenth of the run
        w_t  = 1 / g~_t (Adam, l1 norms)  or  1 / g~_t^2 (SGD, l2 norms)
        rate_t = w_t * sum over p > t of w_p, divided by its largest value

    Norms that fall after a large start give a warmup; norms that rise at the end give a fast last anneal; constant
    norms give the straight line back.

    ## Claim
    Linear decay is optimal in the worst case for the last iterate, and over ten deep-learning problems, several
    language models and a suite of logistic regressions it matches or beats the usual schedules, cosine among them;
    refinement improves on it.

    ## Cost
    One norm of the gradient a step. Refinement needs an earlier run, of any length.

    ## Fields worth tuning
    The learning rate: retune it for a refined schedule, whose peak is at another place.

    ## Watch out
    Norms are those of the weights that train: observe and refine with the same parts. A `clip` inside this part (before
    it in the recipe) flattens the norms; put it after. A refined schedule ignores `warmup` and `floor` and ends at 0.
    Here, on digits, at the rate that suits a constant schedule it is 1.9 points of accuracy behind (n = 20, p = 0.001);
    its claim lets both choose of three.
    Refinement did not help here: on digits it is 22 points behind the straight line, each at its best of four rates
    (n = 20, p < 0.001), as the norms grow twentyfold early and the schedule falls at once; on a small language model the
    two are equal (0.009 nats better, n = 10, p = 0.8). Look at the norms before trusting what they ask for.

    ## Differs from the paper
    The straight line's last step is 1 / T of the peak, not 0. The authors' script repeats the first norm
    to the left of the start instead of mirroring, so a small first norm takes the whole peak. Records beyond 20,000 steps are averaged in pairs.

    ## See also
    cosine, wsd.
    """

    warmup: float = 0.0
    """Share of the budget over which the rate climbs."""
    floor: float = 0.0
    """What the rate falls to, as a share of its peak."""
    observed: Model | None = None
    """A model this part has trained before: its gradient norms refine the schedule."""
    adaptive: bool = True
    """The optimizer scales each coordinate (Adam): l1 norms and 1 / g, not l2 norms and 1 / g^2."""
    window: float = 0.1
    """Width of the median filter, as a share of the run."""

    ranges = {"warmup": [0.0, 0.2], "floor": [0.0, 0.3]}
    null = {"warmup": 0.0, "floor": 1.0}
    tiny = {"world": "digits", "warmup": 0.05}

    def start(self, loop):
        for name in ("warmup", "floor", "window"):
            if not 0 <= getattr(self, name) <= 1:
                raise Bad(f"{name}={getattr(self, name)} must be a share: 0 to 1")
        state = {"norms": [], "every": 1, "sum": 0.0, "last": 0.0, "schedule": None}
        if self.observed is not None:
            kept = self.observed.about.get("gradient_norms")
            if not kept:
                raise Bad("`observed` carries no gradient norms: train it with linear_decay first")
            state["schedule"] = torch.from_numpy(refine(kept, self.adaptive, self.window))
        return state

    def gradient(self, loop, s, inner):
        inner()
        grads = [p.grad for p in loop.model.net.parameters() if p.grad is not None]
        each = torch.stack([g.float() for g in torch._foreach_norm(grads, 1 if self.adaptive else 2)])
        s["last"] = float(each.sum() if self.adaptive else each.norm())

    def rate(self, loop, s):
        if s["schedule"] is not None:
            return at(s["schedule"].numpy(), loop.done)
        return linear_decay(loop.done, 1 / loop.steps, self.warmup, self.floor)

    def watch(self, loop, s, record):
        s["sum"] += s["last"]  # a gradient asked for twice in a step (SAM) counts once
        if record["t"] % s["every"] == 0:
            s["norms"].append(s["sum"] / s["every"])
            s["sum"] = 0.0
            s["norms"], s["every"] = thinned(s["norms"], s["every"])
        loop.model.about["gradient_norms"] = s["norms"]
