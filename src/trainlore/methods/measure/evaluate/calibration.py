from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.losses import aligned, targets
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def tally(confidence: Tensor, correct: Tensor, counted: Tensor, bins: int) -> Tensor:
    """What a row puts into each bin (b/bins, (b+1)/bins] of confidence: float64 (B, bins, 3) of number, sum of confidence
    and number correct.

    confidence, correct, counted: (B,) or (B, T), the last two 0 or 1."""
    confidence, correct, counted = (v.reshape(len(v), -1).double() for v in (confidence, correct, counted))
    bin_ = (torch.ceil(confidence * bins).long() - 1).clamp(0, bins - 1)
    values = torch.stack([counted, confidence * counted, correct * counted], -1)
    return values.new_zeros(len(values), bins, 3).scatter_add_(1, bin_[..., None].expand_as(values), values)


def gaps(total: np.ndarray) -> np.ndarray:
    """|accuracy - mean confidence| of each bin (bins,), 0 where it is empty, from its tally (bins, 3)."""
    number, confidence, correct = total.T
    return np.abs(correct - confidence) / np.maximum(number, 1)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error of predictions with confidence (N,) in [0, 1] that were correct (N,) or not.

    ECE = sum_b n_b / N * | accuracy_b - confidence_b |       over `bins` bins of equal width, open at the left
    """
    c, r = torch.as_tensor(np.asarray(confidence, float)), torch.as_tensor(np.asarray(correct, float))
    total = tally(c[:, None], r[:, None], torch.ones_like(c)[:, None], bins).sum(0).numpy()
    return float((total[:, 0] * gaps(total)).sum() / total[:, 0].sum())


@method(
    name="calibration",
    title="Expected calibration error",
    paper="arXiv:1706.04599",
    family="measure/evaluate",
    year=2017,
    tier="core",
    status="stable",
    code="gpleiss/temperature_scaling",
)
class Calibration(Measure):
    """Compare how sure the model is with how often it is right.

    ## What it does
    Sorts the predictions into bins of equal width by their confidence, the largest probability, and compares in each bin the
    mean confidence with the accuracy.

        ECE = sum_b n_b / N * | accuracy_b - confidence_b |

    A row's value is the gap of the bin it fell in, so that the mean over rows is the ECE; the report also has each row's
    confidence and correctness, and in its notes the bins of the reliability diagram. Of a language model every prediction
    of a labelled token counts; a row then has the mean over its own, weighed by their number.

    ## Claim
    Modern networks are miscalibrated, mostly overconfident, where those of a decade earlier were not; depth, width, weight
    decay and batch norm matter.

    ## Cost
    One forward pass a row.

    ## Fields worth tuning
    `bins`: 15 in the authors' code.

    ## Watch out
    The estimate is biased upwards when bins hold few predictions: compare at equal numbers of rows. Only the top class is
    looked at, and a model that says the base rate for everything is perfectly calibrated.

    ## Differs from the paper
    None known.

    ## See also
    `accuracy`, `held_out_loss`.
    """

    bins: int = 15
    """Number of bins of confidence."""

    tiny = {"world": "digits"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(f"calibration is for models that choose among classes, not for a {model.kind}")
        if self.bins < 1:
            raise Bad(f"bins={self.bins} must be at least 1")
        if not len(data):
            raise Bad("calibration was given no rows")
        if model.kind == "classifier" and not {"label", "labels"} & set(data.columns):
            raise Bad(f"calibration needs column 'label'; there are {', '.join(data.columns)}")

        def tallied(batch: Any, out: Tensor) -> Tensor:
            y, shares = targets(model.kind, batch), aligned(model.kind, out).float().softmax(-1)
            confidence, said = shares.max(-1)
            y = y.argmax(-1) if y.is_floating_point() else y
            return tally(confidence, said == y, y >= 0, self.bins)

        tallies = run.infer(model, data, tallied).numpy()
        number = tallies[:, :, 0].sum(1)
        if not number.sum():
            raise Bad("no row has a label: calibration needs rows with labels")
        total, each = tallies.sum(0), np.maximum(number, 1)
        table = [
            {
                "above": b / self.bins,
                "to": (b + 1) / self.bins,
                "n": int(n),
                "confidence": c / max(n, 1),
                "accuracy": r / max(n, 1),
            }
            for b, (n, c, r) in enumerate(total.tolist())
        ]
        groups = data.groups("domain")
        weights = None if model.kind == "classifier" else number
        how = {"rows": data.ids, "groups": groups, "weights": weights}
        return Report.join(
            Report.of(
                "calibration_error", tallies[:, :, 0] @ gaps(total) / each, "lower", notes={"bins": table}, **how
            ),
            Report.of("confidence", tallies[:, :, 1].sum(1) / each, "", **how),
            Report.of("accuracy", tallies[:, :, 2].sum(1) / each, "higher", **how),
        )
