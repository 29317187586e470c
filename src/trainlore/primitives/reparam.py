"""Weights written out from other numbers, and the way back to plain weights.

A `Written` layer takes the place of a linear layer: at every pass a small module says what its weight is. `adapt` freezes
a model and does so with all its linear layers. `fold` makes such layers plain again, weights under a parametrization of
torch and the adapters of the `peft` library too.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.checkpoint import checkpoint

from trainlore.errors import Bad
from trainlore.nouns import Model

Make = Callable[[str, nn.Parameter], nn.Module]  # (path, frozen weight (out, in)) -> the module that says the weight


class Written(nn.Module):
    """A linear layer whose weight (out, in) is what `make()` says."""

    def __init__(self, layer: nn.Module, make: nn.Module) -> None:
        super().__init__()
        self.make, self.bias, self.turned = make, layer.bias, turned(layer)
        self.train(layer.training)

    @property
    def weight(self) -> Tensor:
        """The weight as the layer keeps it, for those who look at it: (in, out) where it is turned."""
        return self.make().T if self.turned else self.make()

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out). The written weight is not held between the forward and the backward pass."""
        if torch.is_grad_enabled():
            return checkpoint(self._product, x, use_reentrant=False, preserve_rng_state=False)
        return self._product(x)

    def _product(self, x: Tensor) -> Tensor:
        return F.linear(x, self.make(), self.bias)

    @torch.no_grad()
    def plain(self) -> nn.Module:
        """The linear layer this one amounts to."""
        weight = self.weight.detach().clone(memory_format=torch.contiguous_format)
        if self.turned:
            from transformers.pytorch_utils import Conv1D

            layer: nn.Module = Conv1D(1, 1)
            layer.nf, layer.nx = weight.shape[1], weight.shape[0]
        else:
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=self.bias is not None, device="meta")
        layer.weight, layer.bias = nn.Parameter(weight), self.bias
        return layer


class Beside(nn.Module):
    """Says W + B A for a `Written` layer: a weight that stays as it is, and two thin matrices beside it that are trained."""

    def __init__(self, weight: Tensor, up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)  # (out, in), with nothing written to it
        self.up, self.down = (nn.Parameter(t.detach().to(weight.dtype)) for t in (up, down))  # (out, r), (r, in)

    def forward(self) -> Tensor:
        return self.weight + self.up @ self.down


def put_beside(net: nn.Module, path: str, up: Tensor, down: Tensor) -> None:
    """Let the linear layer at `path` add up (out, r) @ down (r, in) to its weight, which is frozen; `fold` makes them one."""
    layer = net.get_submodule(path)
    weight = layer.weight.T.contiguous() if turned(layer) else layer.weight
    made = Written(layer, Beside(weight, up, down))
    if (reads := getattr(layer, "reads", None)) is not None:  # what it reads is rounded, and stays so
        from trainlore.primitives.activations import read_rounded

        read_rounded(made, reads)
    replace(net, path, made)


def turned(layer: nn.Module) -> bool:
    """Whether the layer keeps its weight as (in, out): transformers' Conv1D, of GPT-2, does."""
    names = {"Conv1D", "ParametrizedConv1D"}  # the second is what torch calls one whose weight is computed
    return type(layer).__name__ in names


def layers(model: Model, targets: Sequence[str] = ()) -> dict[str, nn.Module]:
    """Linear layers by path: those whose path ends in one of `targets`; with none named all but the output head."""
    net = model.net
    linear = {path: m for path, m in net.named_modules() if isinstance(m, nn.Linear) or turned(m)}
    named = {t: [path for path in linear if f".{path}".endswith(f".{t}")] for t in targets}
    if idle := [t for t, paths in named.items() if not paths]:
        ends = sorted({path.rpartition(".")[2] for path in linear})
        raise Bad(f"targets: no linear layer's path ends in {', '.join(idle)}; they end in {', '.join(ends)}")
    if targets:
        return {path: m for path, m in linear.items() if any(path in paths for paths in named.values())}
    get_head = getattr(net, "get_output_embeddings", None)
    head = get_head() if get_head is not None else None
    head = head if head is not None else next(reversed(linear.values()), None)
    found = {path: m for path, m in linear.items() if m is not head}
    if not found:
        raise Bad(
            f"{type(net).__name__} has no linear layer but its output head: name it in `targets`, or `fold` it first"
        )
    return found


def freeze(net: nn.Module, but: Sequence[str] = ()) -> None:
    """Train nothing but the weights whose name contains one of `but`."""
    named = dict(net.named_parameters())
    if idle := [word for word in but if not any(word in name for name in named)]:
        raise Bad(f"trainable: no weight's name contains {', '.join(idle)}; they are {', '.join(list(named)[:8])}, ...")
    for name, p in named.items():
        p.requires_grad_(any(word in name for word in but))


@contextmanager
def still(net: nn.Module) -> Iterator[None]:
    """No weight of the net is trained in here, but those that are said to be; afterwards those are that were."""
    was = {name: p.requires_grad for name, p in net.named_parameters()}
    net.requires_grad_(False)
    try:
        yield
    finally:
        for name, p in net.named_parameters():
            p.requires_grad_(was.get(name, p.requires_grad))


def adapt(model: Model, make: Make, targets: Sequence[str] = (), trainable: Sequence[str] = ()) -> Model:
    """Freeze the model and let `make(path, weight (out, in))` give the module that says the weight of each layer.

    The weight handed over is frozen; what the module made holds beside it is trained. Weights whose name contains a word
    of `trainable` (a new head, say) are trained whole. The model itself is changed.
    """
    chosen = layers(model, targets)
    freeze(model.net, trainable)
    for path, layer in chosen.items():
        weight = layer.weight.detach().T.contiguous() if turned(layer) else layer.weight.detach()
        replace(model.net, path, Written(layer, make(path, nn.Parameter(weight, requires_grad=False))))
    return reshaped(model)


def replace(net: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module in the place of the one at this path."""
    parent, _, name = path.rpartition(".")
    setattr(net.get_submodule(parent), name, module)


def reshaped(model: Model, net: nn.Module | None = None) -> Model:
    """The model around its changed net (or another one), with the meter looking at its form anew."""
    kept = model.about, model.trail, model.probe, model.grids
    return Model(model.net if net is None else net, model.kind, model.tokenizer, *kept)


def fold(net: nn.Module) -> nn.Module:
    """Make every weight of the net plain again, and trained. The net itself is changed, and given back unwrapped."""
    if "peft" in sys.modules:  # nothing of peft's can be in the net before it was imported
        net = _fold_peft(net)
    for path, module in list(net.named_modules()):
        if isinstance(module, Written):
            replace(net, path, module.plain().train(module.training))
        elif parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return net.requires_grad_(True)


def _fold_peft(net: nn.Module) -> nn.Module:
    from peft import PeftModel
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    if isinstance(net, PeftModel):
        net = net.get_base_model()
    for path, module in list(net.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            replace(net, path, module.get_base_layer())
        elif isinstance(module, ModulesToSaveWrapper):
            replace(net, path, module.modules_to_save[module.active_adapters[0]])
    if getattr(net, "_hf_peft_config_loaded", False):  # else save_pretrained would go on writing adapters only
        net._hf_peft_config_loaded = False
    vars(net).pop("peft_config", None)
    return net
