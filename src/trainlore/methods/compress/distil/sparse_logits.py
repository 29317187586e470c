from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.alike import same_tokens
from trainlore.primitives.answers import ABOUT, ANSWERS, choices, drawn, fingerprint, places
from trainlore.primitives.losses import aligned
from trainlore.primitives.teaching import sparse_cross_entropy, where_trained
from trainlore.verbs import Part, method


@method(
    name="sparse_logits",
    title="Random sampling knowledge distillation (sparse logits)",
    paper="arXiv:2503.16870",
    lit="p478",
    family="compress/distil",
    year=2025,
    tier="llm",
    code="akhilkedia/RandomSamplingKD",
    status="stable",
)
class SparseLogits(Part):
    """Learn from a few answers drawn at random from each of a teacher's distributions, which is asked once a row.

    ## What it does
    At every place the teacher's distribution t is replaced by the shares of N answers drawn from it with replacement.
    Rows that `sparse_answers` went over bring theirs along, and no teacher is asked at all; else `teacher` is, and its
    answers are kept for the row's later visits.

        t'_v = (draws that fell on v) / N                        E[t'_v] = t_v
        loss = (1 - alpha) inner + alpha sum_v t'_v (-log p_v)

    At the student's logits the gradient is p - t', which is p - t on average: full distillation. Keeping the k
    likeliest answers instead gives (sum of the kept t) p - t: the kept are scaled up, the tail is driven to zero.

    ## Claim
    Students of 300M to 3B parameters match full distillation (loss, calibration, downstream scores) with about 12
    different answers a token (N = 50), at about 10% over plain training; the likeliest 12 do worse than no teacher at
    all.

    ## Cost
    With answers in the rows, the gather. With a teacher one pass of it over each row, in the epoch it is first seen,
    and a store of 4 N bytes a token: 100 GB for a million rows of 512 tokens, for which `sparse_answers` is better.

    ## Fields worth tuning
    `samples`: 50 is the paper's; more costs memory, fewer adds noise to the gradient but no bias.

    ## Watch out
    What a row was told is right for the tokens it had. Where another part rewrites them (masking, denoising)
    `teacher` is asked anew at every visit, which is correct but saves nothing; without one the training stops and
    says so.

    ## Differs from the paper
    The proposal is the teacher itself; the paper tries powers of it from 0.8 to 1.2 and finds no difference. alpha is
    1: the paper's mixing weight was not read.

    ## See also
    `sparse_answers`, which asks beforehand; `kd` for the teacher's whole distribution.
    """

    teacher: Model | None = None
    """Whose answers are drawn; it is not trained. None: those that `sparse_answers` left with the rows."""
    samples: int = 50
    """N, answers drawn at each place by `teacher`."""
    alpha: float = 1.0
    """Weight of the teacher's answers; the labels have the rest."""
    store: bool = True
    """Keep the draws of a row for its next visit; off, and for seq2seq models: ask and draw anew each time."""

    ranges = {"alpha": [0.2, 1.0]}
    null = {"alpha": 0.0}
    tiny = {"world": "text", "teacher": "$teacher", "samples": 8}
    alone = "it remembers something of every row in its loss, and each process would know its own rows only"

    def start(self, loop):
        choices(loop.model.kind, "sparse_logits")
        if not 0 <= self.alpha <= 1 or self.samples < 1:
            raise Bad(f"alpha={self.alpha} must be from 0 to 1, and samples={self.samples} at least 1")
        if self.teacher is None:
            return self._found(loop) if self.alpha else {}
        same_tokens(loop.model, self.teacher, "sparse_logits")
        self.teacher.net.to(loop.device).eval()
        if not self._stores(loop) or not self.alpha:
            return {}
        ends = torch.arange(len(loop.data) + 1)
        if "input_ids" in loop.data.columns:
            ends = torch.from_numpy(loop.data.lists("input_ids")[1].copy())
        return {
            "ends": ends,
            "said": torch.zeros(int(ends[-1]), self.samples, dtype=torch.int32),
            "about": torch.zeros(len(loop.data), dtype=torch.long),  # fingerprint of the tokens a row was asked about
        }

    def loss(self, loop, s, batch, out, inner):
        if not self.alpha:
            return inner(batch, out)
        kind = loop.model.kind
        mine = aligned(kind, out)
        if self.teacher is None:
            said = self._kept(loop, s, batch, mine)
        else:
            said = self._recalled(loop, s, batch, mine) if self._stores(loop) else self._drawn(loop, batch, mine)
        values = where_trained(kind, batch, sparse_cross_entropy(mine, said))
        return (1 - self.alpha) * inner(batch, out) + self.alpha * values

    def _stores(self, loop):
        return self.store and loop.model.kind != "seq2seq"  # whose places are those of the labels, not of the input

    def _drawn(self, loop, batch, mine):
        """Draws at every place of these rows, named by step, row and place: ids (..., samples)."""
        with torch.no_grad():
            theirs = aligned(loop.model.kind, self.teacher(batch))
        if theirs.shape != mine.shape:
            raise Bad(
                f"teacher answers in the form {tuple(theirs.shape)}, the student in {tuple(mine.shape)}: "
                "they must share classes or vocabulary"
            )
        salt = int(torch.randint(1 << 62, (), generator=loop.rng("sparse_logits", loop.t)))
        return drawn(theirs, salt, batch["row"], self.samples)

    def _found(self, loop):
        """How many answers each place has in the rows' own column, and the last of them."""
        if ANSWERS not in loop.data.columns:
            raise Bad(f"give a `teacher`, or rows that `sparse_answers` went over: there is no column {ANSWERS!r}")
        values, ends = loop.data.lists(ANSWERS)
        count = places(loop.model.kind, loop.data)
        each = len(values) // max(1, int(count.sum()))
        if not each or not np.array_equal(np.diff(ends), count * each):
            raise Bad(f"column {ANSWERS!r} does not fit a {loop.model.kind} model: ask a teacher of that kind")
        return {"each": each, "last": int(values.max())}

    def _kept(self, loop, s, batch, mine):
        """The answers that came with these rows: ids (..., N), anything at padding."""
        if s["last"] >= mine.shape[-1]:
            raise Bad(f"column {ANSWERS!r} has answer {s['last']}; the student knows 0 to {mine.shape[-1] - 1}")
        if not torch.equal(batch[ABOUT], fingerprint(batch[loop.model.input], batch.get("attention_mask"))):
            raise Bad(
                f"column {ANSWERS!r} is about rows as they were, not as this training sees them: leave out the part that "
                "rewrites them, or give `teacher`"
            )
        wide = s["each"] * (mine[0].numel() // mine.shape[-1])
        said = F.pad(batch[ANSWERS], (0, max(0, wide - batch[ANSWERS].shape[1])))[:, :wide]
        return said.reshape(*mine.shape[:-1], s["each"])

    def _recalled(self, loop, s, batch, mine):
        """The draws kept for these rows; if one row has none for its present tokens, the teacher is asked about them all."""
        rows = batch["row"].cpu()
        about = fingerprint(batch[loop.model.input], batch.get("attention_mask")).cpu()
        width = mine.shape[1] if mine.dim() == 3 else 1
        start, length = s["ends"][rows], s["ends"][rows + 1] - s["ends"][rows]
        inside = torch.arange(width) < length[:, None]  # padding has no store
        place = (start[:, None] + torch.arange(width))[inside]
        if torch.equal(s["about"][rows], about):
            said = torch.zeros(len(rows), width, self.samples, dtype=torch.long)
            said[inside] = s["said"][place].long()
            return said.to(mine.device).reshape(*mine.shape[:-1], self.samples)
        said = self._drawn(loop, batch, mine)
        fits = torch.full_like(rows, True, dtype=torch.bool)
        if "attention_mask" in batch:
            fits = batch["attention_mask"].cpu().sum(1) <= length
        kept = said.cpu().reshape(len(rows), width, self.samples)
        s["said"][place] = kept[inside].int()
        s["about"][rows] = torch.where(fits, about, 0)
        return said
