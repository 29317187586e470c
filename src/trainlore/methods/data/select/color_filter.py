from __future__ import annotations

import numpy as np
import torch

from trainlore.errors import Bad
from trainlore.nouns import Data, Model
from trainlore.primitives.budget import row_lengths, take_budget
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Curate, method


def loss_reduction(prior: np.ndarray, conditional: np.ndarray) -> np.ndarray:
    """How much lower the loss of each row is under the conditional model: (N,) from two (N,) of mean losses."""
    return np.asarray(prior) - np.asarray(conditional)


@method(
    name="color_filter",
    title="CoLoR-Filter (conditional loss reduction)",
    paper="arXiv:2406.10670",
    lit="p213",
    family="data/select",
    year=2024,
    tier="core",
    status="stable",
    code="davidbrandfonbrener/color-filter-olmo",
)
class ColorFilter(Curate):
    """Keep the rows whose loss falls most when a small prior model is tuned on the target.

    ## What it does

    `prior` is a small model trained on data like the pool; `conditional` is the same model tuned a little further on a
    small sample of the target. Each row is read once by each, and scored by the fall of its mean loss a token:

        score(x) = loss(x; prior) - loss(x; conditional)
        keep the top rows by score

    The prior takes out what is easy or hard for everybody (noise, boilerplate); what is left is what the target taught.

    ## Claim

    Two models of 150 M parameters choose data on which a 1.2 B model reaches the quality of 25 B random tokens with 25
    times less data when the target is Books, and 11 times less for a suite of multiple-choice tasks. From 7 to 64
    candidates were scored for every row kept, and choosing harder kept helping.

    ## Cost

    Two forward passes over the pool by the small models, once; scores serve any later budget, and any size of target model.
    Training the two is not included here.

    ## Fields worth tuning

    `keep`: the authors go down to 1/64. How far `conditional` is tuned: past the point where its loss on held-out target
    rows rises, it scores memorized phrases.

    ## Watch out

    The two models must be the same weights before the tuning: another prior adds its own taste to every score.
    The score is a mean over tokens, so on rows of very different length the top is full of short rows, whose means vary
    most; cut rows to one length first (the authors score sequences of one length), or set a budget in `tokens`.
    Nothing keeps the choice diverse: near copies all score alike. Deduplicate first.

    ## Differs from the paper

    Nothing in the formula. The authors' code keeps a number of rows only; a budget of tokens is ours.

    ## See also

    dsir, random_rows.
    """

    prior: Model
    """Small model trained on rows like the pool's."""
    conditional: Model
    """The prior, tuned further on a sample of the target."""
    keep: float = 0.1
    """Share of the rows to keep (the paper's 1 / tau), above 0 and at most 1; unused when `tokens` is given."""
    tokens: float | None = None
    """Budget in tokens: a number above 1, or a share of all tokens at most 1."""

    null = {"keep": 1.0}
    tiny = {"world": "text", "prior": "$prior", "conditional": "$expert_b", "keep": 0.25}

    def __call__(self, run: Run, data: Data) -> Data:
        data.need(who="color_filter")
        if self.prior.kind != self.conditional.kind:
            raise Bad(
                f"prior is a {self.prior.kind} model and conditional a {self.conditional.kind} model; "
                "give the prior and a copy of it tuned on the target"
            )

        def losses(model: Model) -> np.ndarray:
            def row_loss(batch: dict, out: torch.Tensor) -> torch.Tensor:
                return per_row(rowwise(model.kind, batch, out), batch, model.kind)

            return run.infer(model, data, row_loss).double().cpu().numpy()

        score = loss_reduction(losses(self.prior), losses(self.conditional))
        lengths = None if self.tokens is None else row_lengths(data)
        return data.with_(color=score).take(take_budget(score, self.keep, self.tokens, lengths))
