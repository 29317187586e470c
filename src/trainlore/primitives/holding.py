"""Zeros that stay zero: masks held through training as a parametrization of torch, which `reparam.fold` makes plain again.

The mask is part of the net (a bool buffer named `kept`), and so of its checkpoints; whatever moves the weights, an
optimizer, an average, a step of another part, the layer computes with exact zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.utils import parametrize

from trainlore.errors import Bad
from trainlore.primitives.masks import stored, weight_of
from trainlore.primitives.reparam import turned


class Held(nn.Module):
    """weight -> weight where `kept`, else 0.

    A masked weight has no gradient; `straight`: it has the one it would have if it were kept, so that it may come back.
    """

    def __init__(self, kept: Tensor, straight: bool = False) -> None:
        super().__init__()
        self.straight = straight
        self.register_buffer("kept", kept.bool())

    def forward(self, weight: Tensor) -> Tensor:
        masked = weight.masked_fill(~self.kept, 0.0)
        return weight + (masked - weight).detach() if self.straight else masked


def shaped(layer: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix (out, in) in the shape in which the layer keeps its weight."""
    return matrix.T if turned(layer) else matrix.reshape(stored(layer).shape)


def hold(
    layers: Mapping[str, nn.Module], kept: Mapping[str, Tensor] | None = None, straight: bool = False
) -> dict[str, Held]:
    """Hold a mask on each layer: bool (out, in) by path, or what is not zero now. The masks by path, in the layers' shape."""
    made = {}
    for path, layer in layers.items():
        if find(layer) is not None:
            raise Bad(f"a mask is held on {path} already: give the two methods different `targets`")
        matrix = weight_of(layer) != 0 if kept is None else kept[path]
        made[path] = Held(shaped(layer, matrix).clone(), straight)
        parametrize.register_parametrization(layer, "weight", made[path])
    return made


def find(layer: nn.Module) -> Held | None:
    """The mask held on a layer, if there is one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    return next((m for m in layer.parametrizations.weight if isinstance(m, Held)), None)  # type: ignore[union-attr]


def holding(net: nn.Module, targets: Sequence[str] = ()) -> dict[str, nn.Module]:
    """The layers of a net on which a mask is held, by path: those whose path ends in one of `targets`, or all."""
    return {
        path: m
        for path, m in net.named_modules()
        if find(m) is not None and (not targets or any(f".{path}".endswith(f".{t}") for t in targets))
    }


def let_go(layers: Mapping[str, nn.Module]) -> None:
    """Make the layers' weights plain again, with exact zeros in them, and free to move."""
    for layer in layers.values():
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
