from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model, Report
from trainlore.primitives.losses import rowwise, targets
from trainlore.runs import Run
from trainlore.verbs import Measure, method


def min_k(logprobs: Tensor, counted: Tensor, share: float) -> Tensor:
    """Mean of each row's lowest `share` of token log probabilities: (B,T), bool (B,T) -> (B,); at least one token."""
    n = counted.sum(1)
    k = (n * share).long().clamp(min=1)
    low = logprobs.masked_fill(~counted, float("inf")).sort(1).values
    within = torch.arange(logprobs.shape[1], device=n.device) < torch.minimum(k, n)[:, None]
    return low.masked_fill(~within, 0.0).sum(1) / torch.minimum(k, n)


def beaten(seen: np.ndarray, unseen: np.ndarray) -> np.ndarray:
    """Share of the unseen scores (M,) that each seen score (N,) is above, ties half: its mean over N is the AUC."""
    ladder = np.sort(unseen)
    return (np.searchsorted(ladder, seen, "left") + np.searchsorted(ladder, seen, "right")) / (2 * len(ladder))


@method(
    name="min_k",
    title="Min-K% probability",
    paper="arXiv:2310.16789",
    lit="p192",
    family="measure/audit",
    year=2023,
    tier="llm",
    code="swj0419/detect-pretrain-code",
    status="stable",
)
class MinK(Measure):
    """Tell rows a model was trained on from rows it never saw by their least likely tokens.

    ## What it does
    A row that was never trained on tends to hold a few tokens the model finds very unlikely; in a row it has seen those
    outliers are smoothed away.

        score(x) = mean of log p(x_i | x_<i) over the `share` of the row's tokens with the lowest probability

    Measured on `data` (the rows in question) against `unseen` (rows known not to have been in training): the area under the
    ROC curve, row by row the share of unseen rows with a lower score; the share of rows caught at 5% false alarms; and the
    score. Beside them the AUC of the plain mean log probability, which is what it must beat.

    ## Claim
    WikiMIA, five models of 2.8B to 66B parameters: AUC 0.72 on average, plain perplexity 0.67 (7.4% more). The share of 20%
    was chosen once, among 10 to 50, and kept.

    ## Cost
    One forward pass a row.

    ## Fields worth tuning
    `share`; longer rows make it easier (AUC 0.72 at 32 tokens, 0.77 at 256).

    ## Watch out
    Seen and unseen rows must come from one source and one time: otherwise any difference of style passes for membership.
    The AUC near 0.5 does not show that the rows were not trained on. Row lengths should match in both sets.

    ## Differs from the paper
    Rows of fewer than 1 / `share` tokens are scored by their one least likely token; the authors' code gives them no score.

    ## See also
    `perplexity`, `forgetting`.
    """

    unseen: Data
    """Rows of the same kind that were not trained on."""
    share: float = 0.2
    """Share of a row's tokens, the least likely ones, that count."""

    tiny = {"world": "text", "unseen": "$held_out"}

    def __call__(self, run: Run, model: Model, data: Data) -> Report:
        if not 0 < self.share <= 1:
            raise Bad(f"share must be above 0 and at most 1; it is {self.share}")
        if model.kind != "causal":
            raise Bad(f"min_k reads the next-token probabilities of a causal model, not of a {model.kind} one")
        if not len(data) or not len(self.unseen):
            raise Bad(
                "min_k needs rows in question and, in `unseen`, rows that were not trained on; one of them is empty"
            )

        def lowest(batch, out):
            return min_k(-rowwise("causal", batch, out), targets("causal", batch) != -100, self.share)

        def mean(batch, out):
            return min_k(-rowwise("causal", batch, out), targets("causal", batch) != -100, 1.0)

        (seen, loss), (other, other_loss) = (run.infer(model, d, [lowest, mean]) for d in (data, self.unseen))
        seen, loss, other, other_loss = (v.double().numpy() for v in (seen, loss, other, other_loss))
        alarm = np.quantile(other, 0.95, method="higher")
        notes = {"unseen": len(other), "unseen_score": float(other.mean()), "share": self.share}
        return Report.join(
            Report.of("auc", beaten(seen, other), rows=data.ids, notes=notes),
            Report.of("caught_at_5%", seen > alarm, rows=data.ids),
            Report.of("score", seen, better="", rows=data.ids),
            Report.of("auc_of_loss", beaten(loss, other_loss), rows=data.ids),
        )
