from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.curves import curve_of, least_squares, smooth
from trainlore.runs import Run
from trainlore.verbs import Measure, Part, method

DELTA = 1e-3  # where the residual of a log loss stops counting squared


def areas(rates, decay: float = 0.999) -> tuple[np.ndarray, np.ndarray]:
    """Forward area S1 (T,) and annealing area S2 (T,) of the learning rates (T,) of every step.

    The momentum of annealing is m_i = decay * m_(i-1) + (rate_(i-1) - rate_i), and S2 sums it. The rise to the first peak does
    not count against it: warm-up is not the reverse of annealing.
    """
    from scipy.signal import lfilter

    rates = np.asarray(rates, dtype=np.float64)
    drops = -np.diff(rates, prepend=rates[:1])
    drops[: int(np.argmax(rates)) + 1] = 0.0
    return np.cumsum(rates), np.cumsum(lfilter([1.0], [1.0, -decay], drops))


def law(parameters, s1, s2) -> np.ndarray:
    """Losses (T,) of parameters (floor, scale, exponent, drop) at areas s1, s2 (T,)."""
    floor, scale, exponent, drop = parameters
    return floor + scale * np.maximum(s1, 1e-12) ** -exponent - drop * s2


def fit(losses, s1, s2) -> np.ndarray:
    """Parameters (floor, scale, exponent, drop), all 0 or more, by Huber loss on log residuals over losses, s1, s2 (T,)."""
    from scipy.optimize import nnls

    losses, s1, s2 = (np.asarray(v, dtype=np.float64) for v in (losses, s1, s2))
    if len(losses) < 8 or not (losses > 0).all():
        raise Bad(f"the law needs 8 losses or more, all above 0; there are {len(losses)}")
    middle = np.exp(np.log(s1).mean())  # areas around 1 keep scale and exponent apart
    x, reach = s1 / middle, max(np.abs(s2).max(), 1e-12)
    starts = []
    for exponent in np.geomspace(0.05, 3, 16):  # given the exponent the law is linear
        columns = np.stack([np.ones_like(x), x**-exponent, -s2 / reach], 1)
        (floor, scale, drop), missed = nnls(columns / losses[:, None], np.ones_like(losses))
        starts.append((missed, [floor, scale, exponent, drop]))
    seen = np.abs(s2).max() > 1e-9 * s1.max()
    low, high = [0.0] * 4, [losses.max() * 2, np.inf, 6.0, np.inf if seen else 0.0]
    best = [start for _, start in sorted(starts)[:3]]
    floor, scale, exponent, drop = least_squares(
        lambda p: law(p, x, s2 / reach), best, losses, low, high, huber=DELTA, log=True
    )
    return np.array([floor, scale * middle**exponent, exponent, drop / reach if seen else 0.0])


@method(
    name="annealing_law",
    title="Scaling law with learning-rate annealing",
    paper="arXiv:2408.11029",
    lit="p224",
    family="measure/scale",
    year=2024,
    tier="core",
    status="stable",
)
class AnnealingLaw(Measure):
    """Predict the rest of a training loss curve, for whatever learning-rate schedule is planned, from its start.

    ## What it does
    Reads the curve that the model's last fit left behind (a model that was never fitted is first trained for `steps` on the
    data, as a copy) and fits one equation to every step:

        L(s) = L0 + A * S1(s)^-alpha - C * S2(s)
        S1(s) = sum of the rates up to s                                    forward area
        m_i = decay * m_(i-1) + (rate_(i-1) - rate_i),   S2 = sum of m_i    annealing area

    by Huber loss (1e-3) on log residuals, all four constants 0 or more. Fitted on the first `share` of the curve, and on all
    of a `guide` if one is given, it predicts the rest; the report holds the miss at every step predicted.

    ## Claim
    Fitted on one or two curves, it gives the loss at any step under any schedule (constant, cosine of any length,
    warmup-stable-decay, several cycles), at under 1% of the compute of fitting final losses only.

    ## Cost
    No pass of any network where there is a curve; about a tenth of a second for 2,000 points.

    ## Fields worth tuning
    `decay`: how long annealing goes on working after the rate has fallen, 0.99 to 0.999. A horizon of 1 / (1 - decay) steps
    longer than the run makes S2 a second straight line: take 0.9 to 0.99 for runs of some hundred steps.

    ## Watch out
    A start at constant rate says nothing of C: without a `guide` whose rate fell, annealing is then predicted to do nothing, and
    the note `annealing` says "unseen". The curve is of batch losses, not of held-out ones: with repeated rows it falls
    further. A small run scatters more than annealing moves it: on digits one run of 300 steps a schedule showed no gain over
    the law without S2 (n = 20), curves averaged over three runs did. Data, batch size and model must be those of the guide.
    Rates are shares of the peak, so the peaks must be alike too.

    ## Differs from the paper
    Fits training losses; leaves out the first `skip` and the rise to the first peak instead of modelling warm-up; without the
    optional model-size term.

    ## See also
    wsd, cosine, power_law
    """

    share: float = 0.5
    """How much of the curve is fitted; the rest is predicted."""
    guide: Model | None = None
    """A model whose finished fit, in the same setting, is fitted too."""
    decay: float = 0.999
    """Memory of the annealing momentum, a step."""
    skip: float = 0.05
    """Share of the curve at its start that is not fitted."""
    window: float = 0.05
    """Share of the curve over which the losses are smoothed to be compared with."""

    steps: int = 0
    """Steps to train a copy for where the model remembers no curve."""
    inner: tuple[Part, ...] = ()
    """Parts of that training: its schedule."""
    batch_size: int = 32
    """Rows a step of that training."""
    lr: float = 1e-3
    """Peak learning rate of that training."""

    tiny = {"world": "digits", "guide": "$teacher", "steps": 60, "lr": 1e-2, "decay": 0.95}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        for name in ("share", "decay"):
            if not 0 < getattr(self, name) < 1:
                raise Bad(f"{name} must be between 0 and 1, not {getattr(self, name)}")
        if not 0 <= self.skip < self.share:
            raise Bad(f"skip must be at least 0 and below share; they are {self.skip} and {self.share}")
        data.need(who="annealing_law")
        if not model.about.get("curve") and self.steps:
            model = run.fit(model.copy(), data, *self.inner, steps=self.steps, batch_size=self.batch_size, lr=self.lr)
        t, loss, rate = curve_of(model)
        s1, s2 = self._areas(t, rate)
        cut = int(self.share * len(t))
        curves = [(t, loss, rate, cut), *([] if self.guide is None else [(*curve_of(self.guide), None)])]
        parts = [np.concatenate(column) for column in zip(*(self._fitted(*one) for one in curves), strict=True)]
        found = fit(*parts)
        curve, smoothed = law(found, s1, s2), smooth(loss, max(1, round(self.window * len(t))))
        miss = np.abs(curve - smoothed)[cut:]
        notes = {
            **dict(zip(("floor", "scale", "exponent", "drop"), found.tolist(), strict=True)),
            "annealing": "seen" if found[3] > 0 else "unseen" if not np.ptp(parts[2]) else "no effect seen",
            "fitted_to": int(t[cut]),
            "predicted": float(curve[-1]),
            "final": float(smoothed[-1]),
            "miss": float(curve[-1] - smoothed[-1]),
            "curve": {"t": t.tolist(), "loss": smoothed.tolist(), "predicted": curve.tolist()},
        }
        return Report.of("absolute miss", miss, better="lower", notes=notes)

    def _areas(self, t: np.ndarray, rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Areas at the steps t that were kept, summed over every step."""
        s1, s2 = areas(np.interp(np.arange(1, t[-1] + 1), t, rate), self.decay)
        return s1[t - 1], s2[t - 1]

    def _fitted(self, t: np.ndarray, loss: np.ndarray, rate: np.ndarray, cut: int | None) -> tuple[np.ndarray, ...]:
        """Losses and areas of the part of a curve that is fitted."""
        s1, s2 = self._areas(t, rate)
        first = max(round(self.skip * len(t)), int(np.argmax(rate)) if rate[0] < rate.max() else 0)
        if cut is not None and cut - first < 8:
            raise Bad(
                f"only {cut - first} steps are left between the peak of the rate and `share` {self.share:g}: raise `share`"
            )
        return loss[first:cut], s1[first:cut], s2[first:cut]
