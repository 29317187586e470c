"""Texts without their ends, and going on with them: the likeliest words, one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from trainlore.errors import Bad
from trainlore.nouns import Data

if TYPE_CHECKING:
    from trainlore.nouns import Model
    from trainlore.runs import Run

__all__ = ["continued", "prompts"]


def prompts(texts: list[str], share: float) -> tuple[list[str], list[int]]:
    """Each text without its last int(share * words) + 1 words, and how many that were."""
    words = [t.split() for t in texts]
    cut = [int(share * len(w)) + 1 for w in words]
    return [" ".join(w[:-c]) for w, c in zip(words, cut, strict=True)], cut


def continued(run: Run, model: Model, starts: list[str], words: list[int]) -> list[str]:
    """The starts and as many more words each, the likeliest at every place; at most what half the model's window holds."""
    most = (model.window or 1 << 30) // 2
    words = [min(w, most) for w in words]
    if model.kind == "causal":
        tokens = min(4 * max(words, default=0), most)  # a word is fewer, as a rule; what is too much is cut
        more = run.generate(model, starts, tokens, 0.0) if starts else []
        return [" ".join([s, *m.split()[:count]]) for s, m, count in zip(starts, more, words, strict=True)]
    tok = model.tokenizer
    if tok is None or tok.mask_token_id is None:
        raise Bad("a masked model goes on by filling masks: its tokenizer has no mask token")
    made = list(starts)
    special = torch.tensor(sorted(set(tok.all_special_ids)))
    for place in range(max(words, default=0)):
        mine = [i for i, w in enumerate(words) if w > place]
        rows = model.encode(Data.of([f"{made[i]} {tok.mask_token}" for i in mine]), truncate=True)

        def likeliest(batch: dict, out: torch.Tensor) -> torch.Tensor:
            masked = (batch["input_ids"] == tok.mask_token_id).int()
            at = torch.where(masked.any(1), masked.argmax(1), -1)
            best = out[torch.arange(len(out)), at].index_fill(1, special.to(out.device), -torch.inf).argmax(1)
            return torch.where(at >= 0, best, -1)

        for i, token in zip(mine, run.infer(model, rows, likeliest).tolist(), strict=True):
            made[i] = f"{made[i]} {tok.decode([token]).strip()}".strip() if token >= 0 else made[i]
    return made
