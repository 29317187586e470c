from __future__ import annotations

import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.verbs import Part, method


def masked(ids: Tensor, labels: Tensor, rate: float, token: int | Tensor, generator: torch.Generator) -> Tensor:
    """Input ids (B,T) with each place that is trained on (labels not -100) replaced by `token` with probability `rate`."""
    hide = (torch.rand(ids.shape, generator=generator) < rate) & (labels != -100)
    return torch.where(hide, torch.as_tensor(token, dtype=ids.dtype), ids)


@method(
    name="masked_thought",
    title="Masked thought fine-tuning",
    paper="arXiv:2403.02178",
    lit="p334",
    family="train/objective",
    year=2024,
    tier="llm",
    code="ChangyuChen347/MaskedThought",
    status="stable",
)
class MaskedThought(Part):
    """Hide a share of the answer's own tokens in the input, but not in the labels.

    ## What it does
    While an answer is learned, each of its tokens is covered in the input with probability r; the question stays whole and
    every next token is still asked for. The model must lean on the question and on distant steps, not on the last words.

        r_t       = share * min(1, t / (warmup * steps + 1))
        input_i   = [mask] with probability r_t where token i belongs to the answer, else token i
        labels    as they were

    ## Claim
    Llama-2-7B on GSM8K: 47.3 against 42.8 for plain fine-tuning; with augmented data (MetaMath, Mistral-7B) GSM8K 79.9
    against 77.7 and MATH 29.0 against 28.2.

    ## Cost
    None.

    ## Fields worth tuning
    `share`: 0.4 on GSM8K, 0.2 on MATH and on large augmented sets.

    ## Watch out
    The answer is what the labels train on: rows of plain text, which have no prompt, are covered everywhere. Measured in
    training mode the loss is that of the harder task. The authors' own GSM8K script covers with random tokens (`cover`:
    random) though their text speaks of [mask]. Measured here (running sums written step by step, a small network from
    scratch, 300 steps, 4 seeds): plain tuning solved 0.75 of unseen sums, masked tuning 0.60; after wrong steps, though,
    it was less thrown (1.37 against 1.80 nats a token).

    ## Differs from the paper
    Nothing known. Covering is drawn anew at every visit, as theirs is.

    ## See also
    `ul2` hides spans and asks only for those.
    """

    share: float = 0.4
    """Largest probability that a token of the answer is covered."""
    warmup: float = 2 / 3
    """Share of training over which the probability grows from 0."""
    cover: str = "mask"
    """What covers: mask (the tokenizer's mask token, or failing that its padding token) or random (any token)."""

    needs = {"input_ids": "tokens", "labels": "tokens"}
    ranges = {"share": [0.1, 0.6]}
    null = {"share": 0.0}
    tiny = {"world": "sums", "warmup": 0.0}

    def start(self, loop):
        if not 0 <= self.share < 1:
            raise Bad(f"share must be from 0 to under 1; it is {self.share}")
        if self.warmup < 0:
            raise Bad(f"warmup is a share of training and cannot be below 0; it is {self.warmup}")
        if self.cover not in ("mask", "random"):
            raise Bad(f"cover is mask or random, not {self.cover!r}")
        if self.cover == "mask" and self._token(loop) is None:
            raise Bad("cover: mask needs a tokenizer with a mask or a padding token: add one, or use cover: random")
        return {}

    def _token(self, loop):
        tok = loop.model.tokenizer
        return next(
            (t for t in (getattr(tok, "mask_token_id", None), getattr(tok, "pad_token_id", None)) if t is not None),
            None,
        )

    def batch(self, loop, s, batch):
        spent = loop.done * loop.steps  # steps, also where the budget is not counted in them
        rate = self.share * min(1.0, spent / (self.warmup * loop.steps + 1)) if self.warmup else self.share
        if not rate:
            return batch
        ids, rng = batch["input_ids"], loop.rng("masked_thought", loop.t)
        token = self._token(loop)
        if self.cover == "random":
            token = torch.randint(len(loop.model.tokenizer), ids.shape, generator=rng)
        return {**batch, "input_ids": masked(ids, batch["labels"], rate, token, rng)}
