from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.losses import aligned, targets, token_logprobs
from trainlore.verbs import Part, method


def dpo_loss(policy: Tensor, reference: Tensor, beta: float, smoothing: float = 0.0) -> Tensor:
    """Loss of each pair (B,). policy, reference: log p of the chosen and the rejected answer (B,2), summed over tokens."""
    margin = beta * ((policy[:, 0] - policy[:, 1]) - (reference[:, 0] - reference[:, 1]))
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


def answer_logprobs(kind: str, logits: Tensor, labels: Tensor) -> Tensor:
    """Log p of each answer, summed over the tokens that are not -100: (B,T,V), (B,T) -> (B,)."""
    return token_logprobs(aligned(kind, logits), targets(kind, {"labels": labels})).sum(1)


def both(batch: dict, pad: int) -> dict:
    """Chosen rows over rejected rows (2B,T) as one batch of input_ids, attention_mask and labels, padded to one width."""
    made = {}
    for name, fill in (("input_ids", pad), ("attention_mask", 0), ("labels", -100)):
        sides = [batch[f"chosen_{name}"], batch[f"rejected_{name}"]]
        width = max(side.shape[1] for side in sides)
        made[name] = torch.cat([F.pad(side, (0, width - side.shape[1]), value=fill) for side in sides])
    return made


@method(
    name="dpo",
    title="Direct preference optimization",
    paper="arXiv:2305.18290",
    family="adapt/prefer",
    year=2023,
    tier="llm",
    code="eric-mitchell/direct-preference-optimization",
    status="stable",
)
class DPO(Part):
    """Prefer chosen to rejected answers, measured from where the model began.

    ## What it does
    Owns the loss over pairs: no reward model and no sampling.

        margin = beta [ log p(chosen) - log p(rejected) - log p0(chosen) + log p0(rejected) ]
        loss   = -(1 - smoothing) log sigmoid(margin) - smoothing log sigmoid(-margin)

    p0 is the reference, log p the sum over the answer's tokens. What p0 says of each row never changes, so it is worked
    out in one pass before training and kept with the row.

    ## Claim
    TL;DR summaries: preferred to the reference summary about 61% of the time by GPT-4, PPO 57% at its best temperature.
    Anthropic HH dialogue: the only cheap method that improves on the chosen answers.

    ## Cost
    Two rows through the model a pair, and one pass of the reference over all pairs (none again in later epochs).

    ## Fields worth tuning
    `beta`: 0.1 to 0.5; smaller lets the model go further from the reference. The learning rate should be small: the
    authors use 5e-7 to 1e-6 for models of billions of weights.

    ## Watch out
    The probability of the chosen answer often falls too, only less: watch `exact_match` or `perplexity` beside the margin.
    Answers of different length make sums of different size; nothing here corrects for length. Start from a model that was
    tuned on the chosen answers. The reference's pass assumes that no other part rewrites the rows.

    ## Differs from the paper
    The authors run the reference at every step; the numbers are the same without dropout. They train with RMSprop.

    ## See also
    `min_k` and `forgetting` for what the tuning left behind.
    """

    reference: Model | None = None
    """Where the model began; none: the model as it is at the first step."""
    beta: float = 0.1
    """How much one nat of preference over the reference counts."""
    smoothing: float = 0.0
    """Share of pairs thought to be the wrong way round (conservative DPO), below 0.5."""

    needs = {
        "chosen_input_ids": "tokens",
        "chosen_labels": "tokens",
        "rejected_input_ids": "tokens",
        "rejected_labels": "tokens",
    }
    ranges = {"beta": [0.02, 0.5, "log"]}
    null = None  # it owns the loss
    tiny = {"world": "pairs", "reference": "$reference"}

    def start(self, loop):
        if self.beta <= 0 or not 0 <= self.smoothing < 0.5:
            raise Bad(
                f"beta must be above 0 and smoothing from 0 to under 0.5; they are {self.beta} and {self.smoothing}"
            )
        known, kind = self.reference or loop.model, loop.model.kind

        def said(batch, out):
            return answer_logprobs(kind, out, batch["labels"])

        sides = [
            loop.data.new({name: loop.data[f"{side}_{name}"] for name in ("input_ids", "labels")})
            for side in ("chosen", "rejected")
        ]
        return {"reference": torch.stack([loop.run.infer(known, side, said) for side in sides], 1)}

    def forward(self, loop, s, batch):
        pad = getattr(loop.model.tokenizer, "pad_token_id", None) or 0
        return loop.model(both(batch, pad))

    def loss(self, loop, s, batch, out):
        labels = both(batch, 0)["labels"]
        policy = answer_logprobs(loop.model.kind, out, labels).view(2, -1).T
        return dpo_loss(policy, s["reference"][batch["row"].cpu()].to(policy), self.beta, self.smoothing)
