from __future__ import annotations

from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.losses import aligned, targets
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the largest logit of (..., K) is that of the label: float32 (...).

    labels: class or token ids (...), or shares (..., K), of which the largest counts."""
    wanted = labels.argmax(-1) if labels.is_floating_point() else labels
    return (logits.argmax(-1) == wanted).float()


@method(
    name="accuracy",
    title="Accuracy",
    family="measure/evaluate",
    year=1950,
    tier="core",
    status="stable",
)
class Accuracy(Measure):
    """Count the rows whose likeliest class is theirs.

    ## What it does
        accuracy(row) = 1 if argmax_k z_k == y else 0

    Of a language model or a tagger: the share of a row's labelled tokens that are predicted, weighed by their number.
    Per domain where the data has a column `domain`.

    ## Claim
    None: it measures.

    ## Cost
    One forward pass a row.

    ## Watch out
    Equal logits count for the first of the classes. Where classes differ much in size the largest can carry the number:
    look at groups.

    ## See also
    `held_out_loss` moves before accuracy does; `calibration` asks whether the confidence is right too.
    """

    tiny = {"world": "digits"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(f"accuracy is for models that choose among classes, not for a {model.kind}: use held_out_loss")
        if not len(data):
            raise Bad("accuracy was given no rows")
        if model.kind == "classifier" and not {"label", "labels"} & set(data.columns):
            raise Bad(f"accuracy needs column 'label'; there are {', '.join(data.columns)}")

        def right(batch, out):
            y = targets(model.kind, batch)
            hits = correct(aligned(model.kind, out), y)
            return hits if hits.dim() == 1 else (hits * (y >= 0)).sum(1)

        def count(batch, out):
            y = targets(model.kind, batch)
            return (y >= 0).sum(1) if model.kind != "classifier" else batch["row"] * 0 + 1

        hits, counted = (v.double().numpy() for v in run.infer(model, data, [right, count]))
        if not counted.sum():
            raise Bad("no row has a label: accuracy needs rows with labels")
        groups = data.groups("domain")
        weights = None if model.kind == "classifier" else counted
        return Report.of("accuracy", hits / counted.clip(min=1), "higher", data.ids, groups, weights=weights)
