from __future__ import annotations

import numpy as np

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.losses import per_row, rowwise, targets
from trainlore.runs import Run
from trainlore.verbs import Measure, method


@method(
    name="forgetting", title="Forgetting by domain", family="measure/audit", year=1989, tier="core", status="stable"
)
class Forgetting(Measure):
    """Show by domain what a model has lost against the model it was before.

    ## What it does
    Runs the same rows through both models and takes the difference row by row.

        forgetting(x) = loss_now(x) - loss_before(x)      in nats a target; above 0: forgotten, below 0: learned

    Rows weigh by their number of targets (tokens, or one for a labelled row), so a group's figure is the change of its loss.
    `share_worse` is the share of rows whose loss rose. For classifiers, the accuracy lost is beside it.

    ## Claim
    None: it measures. That training on one task raises the loss of another is known since the first networks.

    ## Cost
    One forward pass of each model a row.

    ## Watch out
    A rise of the loss on text can be a change of format, not of knowledge: look at `exact_match` too. Groups come from the
    column `domain`; without one there is a single figure.

    ## See also
    `perplexity` for the level, `ewc` and `replay` for remedies.
    """

    before: Model
    """The model as it was."""

    tiny = {"world": "text", "before": "$prior"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if model.kind != self.before.kind:
            raise Bad(f"before is a {self.before.kind} model and this one {model.kind}: their losses do not compare")
        if not len(data):
            raise Bad("forgetting was given no rows")

        def loss(batch, out):
            return per_row(rowwise(model.kind, batch, out), batch, model.kind)

        def count(batch, out):
            y = targets(model.kind, batch)
            return (y != -100).sum(1) if y.dim() == 2 and not y.is_floating_point() else y.new_ones(len(y))

        def right(batch, out):
            y = batch["labels"]
            return (out.argmax(-1) == (y.argmax(-1) if y.dim() == 2 else y)).float()

        asked = [loss, count, *([right] if model.kind == "classifier" else [])]
        now, then = (run.infer(m, data, asked) for m in (model, self.before))
        change, weights = (now[0] - then[0]).double().numpy(), now[1].double().numpy()
        groups = data.groups("domain")
        how = {"rows": data.ids, "groups": groups}
        made = [
            Report.of(
                "forgetting",
                change,
                better="lower",
                weights=weights,
                notes={"before": float(np.average(then[0], weights=weights))},
                **how,
            ),
            Report.of("share_worse", change > 0, better="lower", **how),
        ]
        if model.kind == "classifier":
            made.append(Report.of("accuracy_lost", then[2] - now[2], better="lower", **how))
        return Report.join(*made)
