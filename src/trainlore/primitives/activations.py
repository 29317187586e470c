"""Layers that read their inputs in few bits: what a quantized model does to its activations, in the precision it has.

A rounded layer stays the layer it was, with a module `reads` in it that rounds what comes in. It is seen in the weights'
names, so that nothing saves it as the plain model by mistake.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.primitives.grids import FLOATS, bits_of, levels, snap
from trainlore.primitives.numbers import limits


class Rounder(nn.Module):
    """Rounds inputs (..., in) to a format, with scales found anew for every token, or fixed before.

    per "token": each place by its own largest value; "tensor": one scale; "channel": one an input. `scale` and `zero`,
    (1,) or (in,), fix them; without, they are found from what comes in. Gradients go straight through.
    """

    def __init__(self, form: str, per: str = "token", scale: Tensor | None = None, zero: Tensor | None = None) -> None:
        super().__init__()
        bits_of(form)
        if per not in ("token", "tensor", "channel"):
            raise Bad(f"per={per!r} is not how activations share a scale: give token, tensor or channel")
        if per == "token" and scale is not None:
            raise Bad("a scale for each token cannot be fixed before: give per='tensor' or 'channel'")
        self.form, self.per = form, per
        self.register_buffer("scale", scale)
        self.register_buffer("zero", zero if zero is not None or scale is None else torch.zeros_like(scale))

    def forward(self, x: Tensor) -> Tensor:
        scale, zero = self.scale, self.zero
        if scale is None:
            scale, zero = found(x.detach(), self.form, self.per)
        return passed(x, snap(x.detach().float(), self.form, scale, zero))

    def extra_repr(self) -> str:
        return f"{self.form}, per {self.per}, {'found' if self.scale is None else 'fixed'}"


def passed(x: Tensor, rounded: Tensor) -> Tensor:
    """What x was rounded to, in its dtype; to the gradient it is x."""
    return x + (rounded.to(x.dtype) - x).detach()


def found(x: Tensor, form: str, per: str = "tensor") -> tuple[Tensor, Tensor]:
    """Scale and zero point that hold all of x (..., in): (..., 1) by token, (1,) by tensor, (in,) by channel; float32."""
    if per == "token":
        low, high = x.float().aminmax(dim=-1, keepdim=True)
    elif per == "channel":
        low, high = x.float().flatten(0, -2).aminmax(dim=0)
    else:
        low, high = (v.view(1) for v in x.float().aminmax())
    tiny = torch.finfo(torch.float32).tiny
    if form in FLOATS or form.startswith("i"):
        most = float(levels(form)[-1]) if form in FLOATS else limits(bits_of(form))[1]
        scale = torch.maximum(-low, high) / most
        return scale.clamp(min=tiny), torch.zeros_like(scale)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (2 ** bits_of(form) - 1)).clamp(min=tiny)
    return scale, (-low / scale).round()


def regions(x: Tensor, coarse: Tensor | float, ratio: int, bits: int, signed: bool) -> Tensor:
    """The nearest values of two even runs of 2^(bits-1) steps each, the fine step 2^ratio times smaller: the shape of x.

    signed: the fine run below 0, the coarse one above. Else the fine run next to 0, the coarse one beyond it.
    """
    half, fine = 2 ** (bits - 1), coarse / 2**ratio
    small = (x / fine).round().clamp(-half if signed else 0, 0 if signed else half - 1) * fine
    large = (x / coarse).round().clamp(0, half - 1) * coarse
    return torch.where(x < (0.0 if signed else half * fine), small, large)


class Regions(nn.Module):
    """Rounds to two runs of steps tied by a power of two. Gradients go straight through."""

    def __init__(self, coarse: Tensor, ratio: int, bits: int, signed: bool) -> None:
        super().__init__()
        self.ratio, self.bits, self.signed = ratio, bits, signed
        self.register_buffer("coarse", coarse.view(1))

    def forward(self, x: Tensor) -> Tensor:
        return passed(x, regions(x.detach().float(), self.coarse, self.ratio, self.bits, self.signed))

    @staticmethod
    def of(x: Tensor, weight: Tensor, bits: int, signed: bool, most: int) -> Regions:
        """With the power of two, 0 to `most`, that moves x (n, in) times weight (out, in) least."""
        coarse = x.max().clamp(min=torch.finfo(torch.float32).tiny) / (2 ** (bits - 1) - 1)
        gaps = [((regions(x, coarse, m, bits, signed) - x) @ weight.T).square().mean() for m in range(most + 1)]
        return Regions(coarse, int(torch.stack(gaps).argmin()), bits, signed)


def fitted(x: Tensor, weight: Tensor, bits: int) -> Rounder:
    """Rounds around 0 by one scale, the share of the largest value that moves x (n, in) times weight (out, in) least."""
    form = f"int{bits}"
    scale, zero = found(x, form)
    tries = [scale * share / 20 for share in range(4, 21)]
    gaps = [((snap(x, form, s, zero) - x) @ weight.T).square().mean() for s in tries]
    return Rounder(form, "tensor", tries[int(torch.stack(gaps).argmin())])


def read_rounded(layer: nn.Module, rounder: nn.Module) -> None:
    """Let the layer read its input through `rounder` from now on (in the place of one it had)."""
    if not hasattr(layer, "reads"):
        layer.register_forward_pre_hook(_through)
    layer.reads = rounder


def _through(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.reads(args[0]), *args[1:])
