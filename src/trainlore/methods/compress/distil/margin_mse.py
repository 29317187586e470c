from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.ranking import embeddings, margins, ranker, triples
from trainlore.verbs import Part, method


def margin_mse(scores: Tensor, margin: Tensor) -> Tensor:
    """(s+ - s- - margin)^2 of each pair: the student's scores of the chosen and the rejected text (B, 2), (B,) -> (B,)."""
    return (scores[:, 0] - scores[:, 1] - margin).square()


@method(
    name="margin_mse",
    title="Margin-MSE",
    paper="arXiv:2010.02666",
    lit="p444",
    family="compress/distil",
    year=2020,
    tier="core",
    code="sebastian-hofstaetter/neural-ranking-kd",
    status="stable",
)
class MarginMSE(Part):
    """Teach a model that embeds queries and texts by how much better a slower ranker thinks one text than another.

    ## What it does
    Rows are a query (`prompt`), a text that answers it (`chosen`) and one that does so less (`rejected`). The student
    embeds all three apart, by the mean of its last hidden states, and scores by dot product. Only the teacher's margin is
    matched, because rankers of different build score on different scales.

        loss = ( q . p+  -  q . p-  -  margin )^2            margin = M_t(q, p+) - M_t(q, p-), the teachers' mean

    A negative margin is learned as it is: the teacher thinks the pair is the wrong way round.

    ## Claim
    MSMARCO passages, re-ranking: every fast ranker tried gains (TK, ColBERT, PreTT, BERT with dot products) at unchanged
    latency, as a rule more from three teachers' mean than from one. A DistilBERT with dot products, taught by three
    concatenating BERTs, reaches MRR@10 0.332.

    ## Cost
    Two passes a step, one over B queries and one over 2 B texts. The teachers read every pair once, before training; what
    they said takes 4 bytes a row.

    ## Fields worth tuning
    The teachers: several before a larger one. The authors train with 32 pairs a step.

    ## Watch out
    A teacher's margins are in its own unit, and a student that cannot reach it (short vectors, a cosine) learns slowly:
    compare the spread of the margins with that of the student's scores at the start. Rows must keep their text columns.
    Where several students are to be taught, run `teacher_margins` once, which keeps the margins with the rows.

    ## Differs from the paper
    The student embeds by the mean of the tokens, as `Run.embed` does, where the authors take BERT's first token. Only
    students with dot products are here, not ColBERT, PreTT or TK.

    ## See also
    `teacher_margins`; `lead` for what lies between the layers.
    """

    teachers: tuple[Model, ...] = ()
    """Who scores: a classifier or regressor reads query and text as one row, any other model embeds both apart."""
    margin: str = "margin"
    """Column of margins to use instead where there are no teachers."""

    needs = {"prompt": "text", "chosen": "text", "rejected": "text"}
    null = None  # it owns the loss
    tiny = {"world": "pairs", "teachers": "$reference"}

    def start(self, loop):
        ranker(loop.model, "margin_mse")
        if self.teachers:
            for teacher in self.teachers:
                teacher.net.to(loop.device).eval()
            return {"margin": margins(loop.run, self.teachers, loop.data)}
        if self.margin not in loop.data.columns:
            there = ", ".join(loop.data.columns)
            raise Bad(
                f"margin={self.margin!r} is no column: give `teachers`, or run `teacher_margins`; there are {there}"
            )
        margin = np.asarray(loop.data[self.margin])
        if margin.ndim != 1 or margin.dtype.kind not in "fiu" or not np.isfinite(margin).all():
            raise Bad(f"margin={self.margin!r} must hold one finite number a row")
        return {"margin": torch.tensor(margin, dtype=torch.float32)}

    def forward(self, loop, s, batch):
        query, texts = triples(loop.data, batch["row"])
        asked_, given = embeddings(loop.model, query)[-1], embeddings(loop.model, texts)[-1]
        return (asked_ * given.view(2, *asked_.shape)).sum(-1).T

    def loss(self, loop, s, batch, out):
        return margin_mse(out, s["margin"][batch["row"].cpu()].to(out))
