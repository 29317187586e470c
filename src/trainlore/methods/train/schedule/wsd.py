from __future__ import annotations

from math import cos, pi, sqrt

from trainlore.errors import Bad
from trainlore.verbs import Part, method

SHAPES = ("linear", "sqrt", "cosine", "exponential")


def wsd(done: float, one: float, warmup: float, decay: float, floor: float = 0.0, shape: str = "linear") -> float:
    """Factor of the learning rate at the step that starts at `done` (share of the budget) and is `one` long.

    The warmup counts the step itself, so the first rate is not 0; the decay starts at 1 and the last step still moves.
    """
    up = min(1.0, (done + one) / warmup) if warmup > 0 else 1.0
    x = min(1.0, max(0.0, (done - (1 - decay)) / decay)) if decay > 0 else 0.0
    if shape == "exponential":
        return up * floor**x
    down = {"linear": 1 - x, "sqrt": 1 - sqrt(x), "cosine": (1 + cos(pi * x)) / 2}[shape]
    return up * (floor + (1 - floor) * down)


@method(
    name="wsd",
    title="Warmup-stable-decay (WSD)",
    paper="arXiv:2404.06395",
    family="train/schedule",
    year=2024,
    tier="core",
    status="stable",
)
class WSD(Part):
    """Warm the learning rate up, hold it, then decay it over the last stretch.

    ## What it does
    With done the share of the budget spent, u = 1 - decay and x = (done - u) / decay:

        rate = done / warmup                        while done < warmup
             = 1                                    while done < u
             = floor + (1 - floor) * f(x)           to the end; f(x) = 1 - x (linear), 1 - sqrt(x), (1 + cos(pi x)) / 2
             = floor^x                              if shape is exponential

    ## Claim
    MiniCPM (1.2 B and 2.4 B weights): the loss falls steeply in the decay, and a decay over about the last tenth of the
    tokens reaches what a cosine fitted to the same length reaches, while the checkpoints before it can be trained on
    for ever, or branched into as many decays as releases are wanted. arXiv:2405.18392 finds the same of a constant rate
    with a cooldown, and 1 - sqrt(x) better than linear.

    ## Cost
    None.

    ## Fields worth tuning
    `decay`: 0.1 to 0.2; longer helps short runs. The peak rate is lower than a cosine's best one.

    ## Watch out
    Without the decay the loss looks worse than any other schedule's: compare only after it.
    A budget in seconds or work has no known number of steps; the warmup then starts at a rate next to 0.

    ## Differs from the paper
    There the decay halves the rate every so many steps (0.5^((s - S) / T)); `shape: exponential` with a `floor` is that.

    ## See also
    infinite (no end known in advance), linear_decay, cosine.
    """

    warmup: float = 0.01
    """Share of the budget over which the rate climbs."""
    decay: float = 0.1
    """Share of the budget, at its end, over which the rate falls."""
    floor: float = 0.0
    """What the rate falls to, as a share of its peak."""
    shape: str = "linear"
    """How it falls: linear, sqrt, cosine or exponential (which needs a floor)."""

    ranges = {"warmup": [0.0, 0.2], "decay": [0.1, 0.5]}
    null = {"warmup": 0.0, "decay": 0.0}
    tiny = {"world": "digits", "warmup": 0.05, "decay": 0.3}

    def start(self, loop):
        if min(self.warmup, self.decay) < 0 or self.warmup + self.decay > 1:
            raise Bad(f"warmup={self.warmup} and decay={self.decay} must be shares that add up to at most 1")
        if self.shape not in SHAPES:
            raise Bad(f"shape={self.shape!r} is none of {', '.join(SHAPES)}")
        if not 0 <= self.floor <= 1 or (self.shape == "exponential" and self.floor == 0):
            raise Bad(f"floor={self.floor} must be in [0, 1], and above 0 if shape is exponential: give 0.1, say")
        return {}

    def rate(self, loop, s):
        return wsd(loop.done, 1 / loop.steps, self.warmup, self.decay, self.floor, self.shape)
