from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_below
from trainlore.primitives.losses import aligned, targets
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def error_norms(logits: Tensor, labels: Tensor) -> Tensor:
    """|| softmax(logits) - onehot(labels) ||_2 of logits (..., K): (...).

    labels: class ids (...), where a negative one gives 0, or shares (..., K)."""
    error = logits.float().softmax(-1)
    if labels.is_floating_point():
        return (error - labels).norm(dim=-1)
    error = error.scatter_add(-1, labels.clamp(min=0)[..., None], -torch.ones_like(error[..., :1]))
    return error.norm(dim=-1).where(labels >= 0, 0.0)


@method(
    name="el2n",
    title="EL2N",
    paper="arXiv:2107.07075",
    lit="p274",
    family="data/select",
    year=2021,
    tier="core",
    status="stable",
    code="mansheej/data_diet",
)
class EL2N(Curate):
    """Keep the rows that networks still get most wrong a few epochs into training.

    ## What it does
    Scores each row by the length of its error vector, averaged over networks that were trained for a few epochs from
    different initial weights, and keeps the highest-scoring share. The score stays on the data as column `el2n`.

        score(x, y) = mean_k || softmax(f_k(x)) - onehot(y) ||_2        (0 to sqrt 2)

    Of a language model a row's score is the mean over its tokens.

    ## Claim
    With scores from a few epochs into training, half of CIFAR-10 can go while the test accuracy rises slightly; scores
    carry over to other architectures and hyperparameters. The authors advise at least 10 networks.

    ## Cost
    Training the proxies, then one forward pass for each row and proxy.

    ## Fields worth tuning
    `keep`, and `skip_top` where labels are noisy. The proxies should be early (a few epochs of the 200 that the
    authors train for), not finished: a finished network has no errors left to rank.

    ## Watch out
    The rows with wrong labels score highest: that is how noise is found, and why keeping the top harms on noisy data.
    On small or heavily pruned data hard rows alone do worse than random ones: on 1,000 digits, half of the rows by
    score gave 1 (+- 1) point less accuracy than a random half at best, and 23 less with proxies of 20 steps. Our
    claim is therefore about finding wrong labels, not about pruning.

    ## Differs from the paper
    The authors' code keeps either the highest scores or a window of the lowest; `skip_top` gives a window from the top.

    ## See also
    `grand` (gradient norms), `aum` (wrong labels).
    """

    proxies: tuple[Model, ...]
    """Networks a few epochs into training, each from other initial weights."""
    keep: float = 0.5
    """Share of the rows to keep."""
    skip_top: float = 0.0
    """Share of the rows to pass over from the top: likely wrong labels."""

    null = {"keep": 1.0, "skip_top": 0.0}
    tiny = {"world": "digits", "proxies": "$proxies", "keep": 0.5}

    def __call__(self, run: Run, data: Data) -> Data:
        if not self.proxies:
            raise Bad("proxies is empty: give el2n at least one model trained for a few epochs")
        if not 0 <= self.skip_top < 1:
            raise Bad(f"skip_top={self.skip_top} must be at least 0 and below 1: it is a share of the rows")
        data.need(who="el2n")
        score = torch.stack([run.infer(proxy, data, _mean_error(proxy.kind)) for proxy in self.proxies]).mean(0).numpy()
        return data.with_(el2n=score).take(take_below(score, self.keep, self.skip_top))


def _mean_error(kind: str):
    def error(batch, out):
        y = targets(kind, batch)
        errors = error_norms(aligned(kind, out), y)
        return errors if errors.dim() == 1 else errors.sum(1) / (y >= 0).sum(1).clamp(min=1)

    return error
