"""What lies between softmax and values: modules through which attention passes its probabilities, to hear or to round them.

An attention that has one stays the attention it was, with a module `probabilities` in it. Copies of the net take it along,
and what it keeps (buffers, weights) is among the net's weights, so that nothing saves it as the plain model by mistake.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.anatomy import bodies
from trainlore.primitives.calibrating import Unit, inputs

NAME = "trainlore_probabilities"  # what the kernel is called among those of transformers


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as products and a softmax, the probabilities passing through `module.probabilities` if there is one.

    query (B,H,T,d), key and value (B,G,S,d) where G divides H; the mask is added to the scores, or bool (True: seen).
    Returns the values of each head (B,T,H,d) and the probabilities (B,H,T,S).
    """
    if odd := [name for name in ("softcap", "s_aux", "position_bias") if more.get(name) is not None]:
        raise Bad(f"attention with {odd[0]} is not known here: leave the probabilities of this model as they are")
    groups = query.shape[1] // key.shape[1]
    key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is None and more.get("is_causal", getattr(module, "is_causal", False)) and query.shape[2] > 1:
        attention_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril(
            key.shape[2] - query.shape[2]
        )  # kernels that know the order by themselves are called without a mask
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    shares = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    between = getattr(module, "probabilities", None)
    if between is not None:
        shares = between(shares)
    shares = F.dropout(shares, p=dropout, training=module.training)
    return (shares @ value).transpose(1, 2).contiguous(), shares


def attentions(model: Model) -> dict[str, nn.Module]:
    """The attention of each block by its path. Raises Bad for a family whose blocks are not known."""
    paths = [body.heads_in[0].rpartition(".")[0] for body in bodies(model)]
    return {path: model.net.get_submodule(path) for path in paths}


def attend_through(model: Model, path: str, between: nn.Module) -> None:
    """Let the attention at `path` pass its probabilities through a module from now on (in the place of one it had).

    All of the net's attention then runs as `attend`: the same outputs to float precision, with the scores in memory.
    Do it before the net's calls are looked at: masks are made for the kernel that runs.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, eager_mask

    net: Any = model.net
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, eager_mask)
    if getattr(net, "config", None) is None or not hasattr(net, "set_attn_implementation"):
        raise Bad(f"{type(net).__name__} is no model of transformers: its attention cannot be reached")
    if net.config._attn_implementation != NAME:
        net.set_attn_implementation(NAME)
    attention = net.get_submodule(path)
    if net.config._attn_implementation != NAME or not hasattr(attention, "is_causal"):
        raise Bad(f"the attention of {type(net).__name__} at {path} cannot be reached: it runs a kernel of its own")
    attention.probabilities = between


def opened(model: Model) -> dict[str, str]:
    """Let every attention pass its probabilities through a module that changes nothing: its path by that of its block."""
    found = dict(zip((body.path for body in bodies(model)), attentions(model), strict=True))
    for path in found.values():
        attend_through(model, path, nn.Identity())
    return found


def overheard(model: Model, unit: Unit, path: str) -> tuple[dict[str, Tensor], Tensor]:
    """What a block's layers read, (n, in) float32 by path, and all probabilities of its attention at `path`, opened: (m,)."""
    shares: list[Tensor] = []
    between: Any = model.net.get_submodule(path).probabilities
    hook = between.register_forward_hook(lambda m, args, out: shares.append(out.float().flatten()))
    try:
        return inputs(unit), torch.cat(shares)
    finally:
        hook.remove()
