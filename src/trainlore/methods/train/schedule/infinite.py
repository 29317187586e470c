from __future__ import annotations

from math import cos, pi

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def infinite(
    n: int,
    warmup: int,
    cool: int,
    constant: float,
    anneal_from: int | None = None,
    anneal: int = 0,
    floor: float = 0.01,
) -> float:
    """Factor of the learning rate at step n (from 0) of a run whose end need not be known.

    `anneal_from`: the step at which a deliverable starts being made, over `anneal` steps; None: never.
    """
    if anneal_from is not None and n >= anneal_from:
        begin = infinite(anneal_from, warmup, cool, constant)  # wherever the run is by then
        return begin * (floor / begin) ** min(1.0, (n - anneal_from + 1) / anneal)
    if n < warmup:
        return (n + 1) / warmup
    if n < warmup + cool:
        return constant + (1 - constant) / 2 * (1 + cos(pi * (n - warmup) / cool))
    return constant


@method(
    name="infinite",
    title="Infinite learning-rate schedule",
    paper="arXiv:2503.02844",
    lit="p166",
    family="train/schedule",
    year=2025,
    tier="core",
    status="stable",
)
class Infinite(Part):
    """Cool the learning rate to a constant that can be kept for ever, and anneal only to deliver.

    ## What it does
    At step n, counted over all data sets trained on so far (`since` steps before this run):

        rate = n / warmup                                                        while n < warmup
             = constant + (1 - constant) / 2 * (1 + cos(pi (n - warmup) / cool))    for `cool` steps
             = constant                                                          for ever
             = constant * (floor / constant)^((n - N) / anneal)                  over the last `anneal` steps

    The next data set goes on from the weights before the anneal: warmup and cooldown happen once in a model's life.

    ## Claim
    Against a cosine that is warmed up again for every data set, it forgets less and ends better in continual
    pretraining of masked autoencoders, small and large, and of language models judged zero-shot; the length of the run
    need not be known.

    ## Cost
    None, and one more anneal for each release.

    ## Fields worth tuning
    `constant`: high learns the new data, low keeps the old. `anneal`: a tenth of a data set.

    ## Watch out
    A run that ends without an anneal looks worse than it is. Save before the anneal, not after: it is from there that
    training goes on. A budget in seconds or work has no known last step, and so no anneal.

    ## Differs from the paper
    Lengths are in steps of this run, and the anneal counts back from its end. The printed exponent of the anneal is read
    as going from 0 to 1 over the anneal. An anneal may start before the cooldown is over: it goes on from that rate.

    ## See also
    wsd (the same with no cooldown), cosine, replay.
    """

    warmup: int = 100
    """Steps of warmup, once in the model's life."""
    cool: int = 1000
    """Steps of cooldown from the peak to the constant, once in the model's life."""
    constant: float = 0.5
    """The rate that is kept, as a share of the peak."""
    anneal: int = 0
    """Steps at the end of this run that anneal a deliverable; 0 leaves the run open to be gone on with."""
    floor: float = 0.01
    """What the anneal ends at, as a share of the peak."""
    since: int = 0
    """Steps trained before this run, on earlier data sets."""

    ranges = {"constant": [0.2, 0.8]}
    null = {"warmup": 0, "cool": 0, "constant": 1.0, "anneal": 0}
    tiny = {"world": "digits", "warmup": 5, "cool": 20, "anneal": 10}

    def start(self, loop):
        if min(self.warmup, self.cool, self.anneal, self.since) < 0:
            raise Bad("warmup, cool, anneal and since are numbers of steps: give 0 or more")
        if not 0 < self.constant <= 1 or not 0 < self.floor <= 1:
            raise Bad(f"constant={self.constant} and floor={self.floor} are shares of the peak: give them in (0, 1]")
        return {}

    def rate(self, loop, s):
        anneal = min(self.anneal, loop.steps)
        begin = self.since + loop.steps - anneal if anneal else None
        return infinite(self.since + loop.t, self.warmup, self.cool, self.constant, begin, anneal, self.floor)
