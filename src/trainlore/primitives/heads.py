"""Heads of a classifier: its own, what that reads, and a second one beside it, with or without a token to itself."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Batch, Model
from trainlore.primitives.reparam import replace


def head(net: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer of a network, and its path ("" where it is the network). Raises Bad where there is none."""
    found = [(path, m) for path, m in net.named_modules() if isinstance(m, nn.Linear)]
    if not found:
        raise Bad(f"{type(net).__name__} has no linear layer whose input could be read as features")
    return found[-1]


def features(model: Model, rows: Batch) -> Tensor:
    """What the model's own head reads of these rows, with its gradient: (N, D)."""
    seen: list[Tensor] = []
    hook = head(model.net)[1].register_forward_pre_hook(lambda layer, args: seen.append(args[0]))
    try:
        model(rows)
    finally:
        hook.remove()
    return seen[-1]


class Twin(nn.Module):
    """Two heads on the same features, which answer with the mean of their logits."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.cls_classifier, self.distillation_classifier = head, copy.deepcopy(head)

    def forward(self, x: Tensor) -> Tensor:
        return (self.cls_classifier(x) + self.distillation_classifier(x)) / 2


@torch.no_grad()
def with_token(net: nn.Module) -> nn.Module:
    """A ViTForImageClassification as a DeiTForImageClassificationWithTeacher: the same weights, a distillation token
    (zeros, and a zero position) and its head, a copy of the other one."""
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    given = {k: v for k, v in net.config.to_dict().items() if k not in ("model_type", "architectures")}
    made = DeiTForImageClassificationWithTeacher(DeiTConfig(**given))
    names = ("vit.", "deit."), ("classifier.", "cls_classifier.")
    weights = {
        next(new + k[len(old) :] for old, new in names if k.startswith(old)): v for k, v in net.state_dict().items()
    }
    place = weights["deit.embeddings.position_embeddings"]
    weights["deit.embeddings.position_embeddings"] = torch.cat([place[:, :1], 0 * place[:, :1], place[:, 1:]], 1)
    weights["deit.embeddings.distillation_token"] = torch.zeros_like(weights["deit.embeddings.cls_token"])
    weights |= {k.replace("cls_", "distillation_"): v for k, v in weights.items() if k.startswith("cls_classifier.")}
    made.load_state_dict(weights)
    return made.to(place).train(net.training)


def heads(net: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    """The class head and the distillation head, in the order they are run."""
    both = next(m for m in net.modules() if hasattr(m, "distillation_classifier"))
    return both.cls_classifier, both.distillation_classifier


@torch.no_grad()
def one_head(net: nn.Module) -> None:
    """Fold every `Twin` of the network into one head that answers alike, and is the one it was made of."""
    for path, twin in [(path, m) for path, m in net.named_modules() if isinstance(m, Twin)]:
        own, other = twin.cls_classifier, twin.distillation_classifier
        for name, p in own.named_parameters():  # by name: whatever left a head before may have changed their order
            p.copy_((p + other.get_parameter(name)) / 2)
        replace(net, path, own)
