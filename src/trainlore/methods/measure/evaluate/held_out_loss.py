from __future__ import annotations

import math

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.losses import rowwise, targets
from trainlore.runs import Run
from trainlore.verbs import Measure, method


@method(
    name="held_out_loss",
    title="Held-out loss",
    family="measure/evaluate",
    year=1948,
    tier="core",
    status="stable",
)
class HeldOutLoss(Measure):
    """Measure the model's own loss on each row.

    ## What it does
        loss(row) = mean over the row's targets of the loss the model is trained with       (nats; squares for numbers)

    Rows of a language model are weighed by their targets, so the value is the mean over tokens. Per domain where the data
    has a column `domain`. The notes hold what is exceeded by 10%, 5% and 1% of the rows, and the perplexity of a
    language model.

    ## Claim
    None: it measures.

    ## Cost
    One forward pass a row.

    ## Watch out
    Models with different tokenizers do not compare by it: `perplexity` has bits a byte. Methods that smooth targets raise
    it without being worse; a few rows can carry the mean, so look at the quantiles.

    ## See also
    `perplexity`, `accuracy`, `calibration`.
    """

    tiny = {"world": "digits"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if model.kind in ("encoder", "denoiser"):
            raise Bad(f"a model of kind {model.kind} has no loss of its own")
        if not len(data):
            raise Bad("held_out_loss was given no rows")
        if model.kind in ("classifier", "regressor") and not {"label", "labels"} & set(data.columns):
            raise Bad(f"held_out_loss needs column 'label'; there are {', '.join(data.columns)}")
        tokens = model.kind not in ("classifier", "regressor")

        def total(batch, out):
            losses = rowwise(model.kind, batch, out)
            return losses.sum(1) if tokens else losses

        def count(batch, out):
            return (targets(model.kind, batch) != -100).sum(1) if tokens else batch["row"] * 0 + 1

        summed, counted = (v.double().numpy() for v in run.infer(model, data, [total, count]))
        if not counted.sum():
            raise Bad("no row has a target: held_out_loss needs rows with labels")
        groups = data.groups("domain")
        values = summed / counted.clip(min=1)
        tail = {f"exceeded_by_{p}%": float(q) for p, q in zip((10, 5, 1), _quantiles(values), strict=True)}
        report = Report.of("loss", values, "lower", data.ids, groups, tail, weights=counted if tokens else None)
        if model.kind in ("causal", "masked", "seq2seq"):
            report["loss"].notes["perplexity"] = math.exp(min(report.value, 700.0))  # type: ignore[index]
        return report


def _quantiles(values):
    import numpy as np

    return np.quantile(values, (0.9, 0.95, 0.99))
