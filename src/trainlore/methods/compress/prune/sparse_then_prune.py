from __future__ import annotations

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.primitives.masks import matrices, plain, share, top_global, weight_of, write
from trainlore.primitives.teaching import where_trained
from trainlore.verbs import Part, method

HELD = "_attention_before"  # where the net keeps the name of the attention kernel that it had


def spread(attention: Tensor) -> Tensor:
    """Mean of log(1 + A^2) over heads, queries and keys: (B, heads, T, S) -> (B,)."""
    return attention.float().square().log1p().mean((1, 2, 3))


@method(
    name="sparse_then_prune",
    title="Sparse then prune",
    paper="arXiv:2307.11988",
    lit="p063",
    code="yogiprsty/Sparse-ViT",
    family="compress/prune",
    year=2023,
    tier="modality",
    status="stable",
)
class SparseThenPrune(Part):
    """Punish large attention weights while fine-tuning a transformer, and prune it by magnitude at the end.

    ## What it does
    With A (heads, T, T) the attention weights (after the softmax) that a row gives in the last block:

        loss of the row + strength * mean over heads, queries and keys of log(1 + A^2)

    and after the last step the `keep` largest |w| over all layers stay, the others become 0.

    ## Claim
    ViT-B/16 pretrained on ImageNet-21K and fine-tuned for 20 epochs, pruned at several shares: 0.57 points of accuracy
    more on CIFAR-10, 1.76 on CIFAR-100, 0.26 on ImageNet-100 on average than pruned without the penalty; unpruned 0.12 more
    on the latter two.

    ## Cost
    Attention is computed in its plain form, which holds the (B, heads, T, T) weights of every block; no fused kernel. One
    selection over the weights.

    ## Fields worth tuning
    `strength`, `keep`.

    ## Watch out
    Rows of A sum to 1, so the penalty is smallest where attention is even: it flattens, and makes no weight of a layer small.
    It is tiny (below log 2 / T), and at the authors' strength its gradient is next to nothing: here it moves the loss of a
    small ViT on digits by 1e-5 and no answer, and a hundred times as strong it leaves the accuracy where it was (n = 20).

    ## Differs from the paper
    Embedding, norms and head are pruned too in the authors' code; here linear and convolution layers but the head. `blocks: last` is
    what that code does: each block's value takes the place of the one before.

    ## See also
    magnitude, which prunes without it; block_movement.
    """

    strength: float = 0.01
    """Weight of the penalty."""
    keep: float = 0.9
    """Share of the weights left at the end; 1: nothing is pruned."""
    blocks: str = "last"
    """Whose attention is punished: last (the last block's) or all (the mean over blocks)."""
    targets: tuple[str, ...] = ()
    """Ends of the paths of the layers to prune; all but the output head when empty."""

    ranges = {"strength": [0.001, 10.0, "log"]}
    null = {"strength": 0.0, "keep": 1.0}
    tiny = {"world": "text", "keep": 0.7}

    def attach(self, loop):
        share("keep", self.keep)
        if self.strength < 0:
            raise Bad(f"strength={self.strength} must be at least 0")
        if self.blocks not in ("last", "all"):
            raise Bad(f"blocks={self.blocks!r} is neither last nor all")
        net = loop.model.net
        if self.keep < 1:
            plain(matrices(net, self.targets))
        if not self.strength:
            return
        if not hasattr(net, "set_attn_implementation"):
            raise Bad(f"{type(net).__name__} has no attention to punish: give a transformer, or strength 0")
        setattr(net, HELD, net.config._attn_implementation)
        net.set_attn_implementation("eager")

    def forward(self, loop, s, batch, inner):
        if not self.strength:
            return inner(batch)
        found: list[Tensor] = []

        def look(module: nn.Module, args: tuple, out) -> None:
            weights = out[1] if isinstance(out, tuple) and len(out) > 1 else None
            if isinstance(weights, Tensor) and weights.dim() == 4 and not any(weights is w for w in found):
                found.append(weights)

        hooks = [
            m.register_forward_hook(look) for m in loop.model.net.modules() if type(m).__name__.endswith("Attention")
        ]
        try:
            out = inner(batch)
        finally:
            for hook in hooks:
                hook.remove()
        if not found:
            raise Bad(
                f"{type(loop.model.net).__name__} does not show its attention weights: leave sparse_then_prune out"
            )
        s["spread"] = torch.stack([spread(a) for a in (found if self.blocks == "all" else found[-1:])]).mean(0)
        return out

    def loss(self, loop, s, batch, out, inner):
        values = inner(batch, out)
        if not self.strength:
            return values
        extra = self.strength * s.pop("spread")  # (B,)
        if values.dim() == 2:
            extra = where_trained(loop.model.kind, batch, extra[:, None].expand_as(values))
        return values + (extra if values.dim() else extra.mean())

    @torch.no_grad()
    def detach(self, loop):
        net = loop.model.net
        if HELD in vars(net):
            net.set_attn_implementation(vars(net).pop(HELD))
        if self.keep == 1:
            return
        layers = matrices(net, self.targets)
        kept = top_global({path: weight_of(layer).abs() for path, layer in layers.items()}, self.keep)
        for path, layer in layers.items():
            write(layer, weight_of(layer).masked_fill(~kept[path], 0.0))
