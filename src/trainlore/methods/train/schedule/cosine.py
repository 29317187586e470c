from __future__ import annotations

from math import cos, pi

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def cosine(done: float, one: float, warmup: float = 0.0, floor: float = 0.0) -> float:
    """Factor of the learning rate at the step that starts at `done` (share of the budget) and is `one` long."""
    if done + one < warmup:
        return (done + one) / warmup
    x = max(0.0, done - warmup) / (1 - warmup) if warmup < 1 else 0.0
    return floor + (1 - floor) * (1 + cos(pi * min(1.0, x))) / 2


@method(
    name="cosine",
    title="Cosine decay",
    paper="arXiv:1608.03983",
    family="train/schedule",
    year=2016,
    tier="core",
    status="stable",
)
class Cosine(Part):
    """Let the learning rate fall along half a cosine, after a warmup.

    ## What it does
    With x the share of the budget after the warmup that is spent:

        rate = done / warmup                                          while done < warmup
             = floor + (1 - floor) * (1 + cos(pi x)) / 2              then

    ## Claim
    SGDR, from which the half cosine comes, restarts it: 3.14 and 16.21 % error on CIFAR-10 and -100. One cosine over
    the whole run, down to a tenth of the peak, became the common schedule of language models; here it is the rival.

    ## Cost
    None.

    ## Fields worth tuning
    `floor`: 0 for a final model, 0.1 is common where training will go on.

    ## Watch out
    It is fitted to one length: a model stopped at half of it has not been decayed, and one trained on has to be warmed
    up again, which forgets (see infinite).
    Its best learning rate is higher: here, on digits, at the rate that suits a constant schedule it is 2.2 points of
    accuracy behind (n = 20, p = 0.002; no warmup on the other side); its claim lets both choose of three.

    ## See also
    wsd, linear_decay, infinite.
    """

    warmup: float = 0.01
    """Share of the budget over which the rate climbs."""
    floor: float = 0.0
    """What the rate falls to, as a share of its peak."""

    ranges = {"warmup": [0.0, 0.2], "floor": [0.0, 0.3]}
    null = {"warmup": 0.0, "floor": 1.0}
    tiny = {"world": "digits", "warmup": 0.05}

    def start(self, loop):
        for name in ("warmup", "floor"):
            if not 0 <= getattr(self, name) <= 1:
                raise Bad(f"{name}={getattr(self, name)} must be a share: 0 to 1")
        return {}

    def rate(self, loop, s):
        return cosine(loop.done, 1 / loop.steps, self.warmup, self.floor)
