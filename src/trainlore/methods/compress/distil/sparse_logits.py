from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.losses import aligned
from trainlore.primitives.teaching import draws, sparse_cross_entropy, uniforms, where_trained
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
    """Ask the teacher once, keep a few answers drawn at random from each of its distributions, and learn from those.

    ## What it does
    At every place the teacher's distribution t is replaced by the shares of N answers drawn from it with replacement.
    The draws are kept with the row, so that later visits need no teacher.

        t'_v = (draws that fell on v) / N                        E[t'_v] = t_v
        loss = (1 - alpha) inner + alpha sum_v t'_v (-log p_v)

    At the student's logits the gradient is p - t', which is p - t on average: full distillation. Keeping the k likeliest
    answers instead gives (sum of the kept t) p - t: the kept are scaled up, the tail is driven to zero.

    ## Claim
    Students of 300M to 3B parameters match full distillation (loss, calibration, downstream scores) with about 12 different
    answers a token (N = 50), at under 10% overhead over cross-entropy; the likeliest 12 do worse than no teacher at all.

    ## Cost
    One teacher pass over each row, in the epoch it is first seen; then only the gather. The store takes 4 N bytes a token.

    ## Fields worth tuning
    `samples`: 50 is the paper's; more costs memory, fewer adds noise to the gradient but no bias.

    ## Watch out
    What a row was told is right for the tokens it had: where another part rewrites the tokens (masking, denoising) the row
    is asked about anew at every visit, which is correct but saves nothing.

    ## Differs from the paper
    The store lives with the run (and its checkpoints), not in files written beforehand. The proposal is the teacher itself;
    the paper tries powers of it from 0.8 to 1.2 and finds no difference. alpha is 1: the paper's mixing weight was not read.

    ## See also
    `kd` for the teacher's whole distribution.
    """

    teacher: Model
    """Whose answers are drawn; it is not trained."""
    samples: int = 50
    """N, answers drawn at each place."""
    alpha: float = 1.0
    """Weight of the teacher's answers; the labels have the rest."""
    store: bool = True
    """Keep the draws of a row for its next visit; off, and for seq2seq models: ask and draw anew each time."""

    ranges = {"alpha": [0.2, 1.0]}
    null = {"alpha": 0.0}
    tiny = {"world": "text", "teacher": "$teacher", "samples": 8}

    def start(self, loop):
        if loop.model.kind in ("regressor", "encoder", "denoiser"):
            raise Bad(
                f"sparse_logits teaches choices among classes or tokens, which a {loop.model.kind} model does not make"
            )
        if not 0 <= self.alpha <= 1:
            raise Bad(f"alpha must be from 0 to 1; it is {self.alpha}")
        if self.samples < 1:
            raise Bad(f"samples must be at least 1; it is {self.samples}")
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
        uniform = uniforms(salt, batch["row"], theirs[0, ..., 0].numel(), self.samples)
        return draws(theirs, uniform.reshape(*theirs.shape[:-1], self.samples))

    def _recalled(self, loop, s, batch, mine):
        """The draws kept for these rows; if one row has none for its present tokens, the teacher is asked about them all."""
        rows = batch["row"].cpu()
        about = fingerprint(
            batch[loop.model.input].cpu(), batch["attention_mask"].cpu() if "attention_mask" in batch else None
        )
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


def fingerprint(values: Tensor, real: Tensor | None = None) -> Tensor:
    """A number for each row of tokens or features (B, ...) -> int64 (B,): equal rows alike, others almost surely not.

    real (B,T): 1 where a token is one and not padding, so that a row padded further is still the same row."""
    flat = values.reshape(len(values), -1)
    if flat.is_floating_point():
        flat = flat.float().contiguous().view(torch.int32)
    place = torch.arange(1, flat.shape[1] + 1) * -7046029254386353131
    place = (place ^ (place >> 29)) * -4658895280553007687
    counted = flat.long() + 1 if real is None else (flat.long() + 1) * real
    return (counted * (place | 1)).sum(1)
