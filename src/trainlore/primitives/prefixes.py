"""Prefixes of vectors: what a causal model says of tokens after one, and the texts it writes from there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainlore.nouns import Model
from trainlore.primitives.losses import token_logprobs
from trainlore.runs import Run


def under_prefixes(net: nn.Module, prefixes: Tensor, ids: Tensor) -> Tensor:
    """log p of each token after each class's prefix: prefixes (K,L,D), ids (B,T) -> (K,B,T), the first token too."""
    (classes, length, _), rows = prefixes.shape, len(ids)
    said = net.get_input_embeddings()(ids)  # type: ignore[operator]
    read = torch.cat(
        [prefixes.to(said.dtype)[:, None].expand(-1, rows, -1, -1), said.expand(classes, -1, -1, -1)], 2
    ).flatten(0, 1)
    out = net(inputs_embeds=read, use_cache=False).logits[:, length - 1 : -1]
    return token_logprobs(out, ids.repeat(classes, 1)).view(classes, *ids.shape)


def written(
    run: Run,
    writer: Model,
    prefix: Tensor,
    n: int,
    new: int,
    temperature: float,
    top_k: int | None,
    *key: Any,
    size: int = 64,
) -> list[str]:
    """n texts of at most `new` tokens that go on from a prefix (L,D), `size` at a time; `key` names the draws."""
    tok, texts = writer.tokenizer, []
    how: dict[str, Any] = {"max_new_tokens": new, "do_sample": True, "top_k": top_k or 0}
    how |= {"temperature": temperature, "pad_token_id": tok.pad_token_id}
    with torch.no_grad(), run.global_rng("generate", *key):
        for at in range(0, n, size):
            start = prefix.to(writer.net.dtype).expand(min(size, n - at), -1, -1)
            real = torch.ones(start.shape[:2], dtype=torch.long, device=start.device)
            how |= {"inputs_embeds": start, "attention_mask": real}
            texts += tok.batch_decode(writer.net.generate(**how), skip_special_tokens=True)  # type: ignore[operator]
    return texts
