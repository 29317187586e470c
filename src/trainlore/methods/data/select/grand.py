from __future__ import annotations

import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import take_below
from trainlore.primitives.gradients import row_norms
from trainlore.runs import Run
from trainlore.verbs import Curate, method


@method(
    name="grand",
    title="GraNd",
    paper="arXiv:2107.07075",
    lit="p274",
    family="data/select",
    year=2021,
    tier="core",
    status="stable",
    code="mansheej/data_diet",
)
class GraNd(Curate):
    """Keep the rows whose loss pulls hardest at the weights early in training.

    ## What it does
    Scores each row by the length of the gradient of its loss with respect to all weights, exactly, averaged over
    networks that started from different initial weights, and keeps the highest-scoring share. The score stays on the
    data as column `grand`.

        score(x, y) = mean_k || d loss(f_k(x), y) / d w_k ||_2

    ## Claim
    Early in training the score finds the rows that matter for generalization; large parts of CIFAR-10 can go without
    loss of accuracy. `el2n` is the paper's cheaper stand-in.

    ## Cost
    Training the proxies, then a forward and a backward for each row and proxy, and one row more, by which the first is
    checked. Lengths come from what layers read and the slopes of what they give, so no gradient is held.

    ## Fields worth tuning
    `keep`; `skip_top` where labels are noisy.

    ## Watch out
    Rows with wrong labels score highest. The norm depends on how the weights are scaled and grows with the length of
    the input vector: compare scores only among proxies of one architecture. The networks run in evaluation mode, so
    dropout does not add noise and batch norm does not mix rows. On 1,000 digits half of the rows by score gave 1 (+- 1)
    point less accuracy than a random half at best: our claim is about finding wrong labels, not about pruning.

    ## Differs from the paper
    None in the score; the window `skip_top` is counted from the top.

    ## See also
    `el2n` (one forward instead of a backward).
    """

    proxies: tuple[Model, ...]
    """Networks early in training, each from other initial weights."""
    keep: float = 0.5
    """Share of the rows to keep."""
    skip_top: float = 0.0
    """Share of the rows to pass over from the top: likely wrong labels."""
    chunk: int = 0
    """Rows that go through the network together; 0: 64, fewer where gradients must be held, one where nothing else goes."""

    null = {"keep": 1.0, "skip_top": 0.0}
    tiny = {"world": "digits", "proxies": "$proxies", "keep": 0.5}

    def __call__(self, run: Run, data: Data) -> Data:
        if not self.proxies:
            raise Bad("proxies is empty: give grand at least one model early in training")
        if not 0 <= self.skip_top < 1:
            raise Bad(f"skip_top={self.skip_top} must be at least 0 and below 1: it is a share of the rows")
        data.need(who="grand")
        norms = [row_norms(run, proxy, data, chunk=self.chunk) for proxy in self.proxies]
        score = torch.stack(norms).mean(0).numpy()
        return data.with_(grand=score).take(take_below(score, self.keep, self.skip_top))
