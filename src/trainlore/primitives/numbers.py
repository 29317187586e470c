"""Few-bit integers: who shares a scale, which scale holds them all, and integers packed tight."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn.functional import pad

from trainlore.errors import Bad


def limits(bits: int, symmetric: bool = True) -> tuple[int, int]:
    """The smallest and largest integer of `bits`: two's complement if symmetric, else counted from 0."""
    if bits not in range(2, 9):
        raise Bad(f"bits={bits} is not supported: give a whole number from 2 to 8")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)


def lanes(weight: Tensor, per: str | int = "channel") -> Tensor:
    """The values that share one scale, a row each: (lanes, length).

    per "tensor": all; "channel": one output channel (the first axis); an int g: runs of g inputs of a channel, the
    last run filled up with zeros (which every grid here can represent, so the filling changes no scale).
    """
    rows = weight.reshape(1, -1) if per == "tensor" else weight.reshape(weight.shape[0], -1)
    if isinstance(per, str):
        if per not in ("tensor", "channel"):
            raise Bad(f"per={per!r} is not a lane: give 'tensor', 'channel' or a group size such as 128")
        return rows
    if per < 1:
        raise Bad(f"per={per} is not a group size: give a whole number >= 1, 'channel' or 'tensor'")
    return pad(rows, (0, -rows.shape[1] % per)).reshape(-1, per)


def unlanes(values: Tensor, shape: torch.Size | tuple[int, ...], per: str | int = "channel") -> Tensor:
    """The inverse of `lanes`: (lanes, length) -> `shape`."""
    if isinstance(per, str):
        return values.reshape(shape)
    return values.reshape(shape[0], -1)[:, : prod(shape[1:])].reshape(shape)


def scales(
    weight: Tensor, bits: int, per: str | int = "channel", symmetric: bool = True, clip: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of each lane, (lanes, 1), float32 and int32.

    symmetric: scale = 2 max|w| / (2^bits - 1), zero = 0: the whole of two's complement is used. The largest weight then
    lies half way between two integers: the scale is made a hair smaller, so it goes outwards on every machine.
    Else scale = (max - min) / (2^bits - 1) over a range that always holds 0, zero = round(-min / scale): 0.0 stays
    exactly 0. `clip` < 1 shrinks the range.
    """
    low, high = limits(bits, symmetric)
    rows = lanes(weight.detach().float(), per)
    if rows.shape[1] == 0:
        raise Bad(f"a weight of shape {tuple(weight.shape)} has no values to quantize")
    tiny = torch.finfo(torch.float32).tiny
    if symmetric:
        scale = (2 * clip * (1 - 1e-6) / (2**bits - 1)) * rows.abs().amax(1, keepdim=True)
        scale = scale.where(scale > tiny, torch.ones_like(scale))  # an all-zero lane: any grid will do
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    least, most = rows.amin(1, keepdim=True).clamp(max=0), rows.amax(1, keepdim=True).clamp(min=0)
    scale = clip * (most - least) / (high - low)
    scale = scale.where(scale > tiny, torch.ones_like(scale))
    return scale, (-clip * least / scale).round().clamp(low, high).int()


def straight(x: Tensor) -> Tensor:
    """Rounded in the forward pass (halves to even), unchanged in the backward pass."""
    return x + (x.round() - x).detach()


def stepped(x: Tensor, scale: Tensor, zero: Tensor, bits: int, symmetric: bool = False) -> Tensor:
    """(clip(round(x / scale) + zero) - zero) * scale, shaped to broadcast; gradients go straight through the rounding."""
    low, high = limits(bits, symmetric)
    return ((straight(x / scale) + zero).clamp(low, high) - zero) * scale


def pack(ints: Tensor, bits: int) -> Tensor:
    """Integers of `bits` (2 to 8, signed or not) to bytes, lowest bit first, no gaps: 8 values fill `bits` bytes.

    ints: any shape. Returns uint8 (ceil(n / 8) * bits,); the last run of 8 is filled up with zeros.
    """
    low, high = limits(bits, bool(ints.dtype.is_signed))
    if ints.numel() and (int(ints.min()) < low or int(ints.max()) > high):
        raise Bad(f"a value outside [{low}, {high}] does not fit in {bits} bits: quantize first")
    flat = pad(ints.flatten().to(torch.int16) & (2**bits - 1), (0, -ints.numel() % 8)).view(-1, 8, 1)
    bit = (flat >> torch.arange(bits, device=ints.device)) & 1
    bytes_ = bit.view(-1, bits, 8) << torch.arange(8, device=ints.device)
    return bytes_.sum(-1).to(torch.uint8).flatten()


def unpack(packed: Tensor, bits: int, shape: torch.Size | tuple[int, ...], signed: bool = True) -> Tensor:
    """The inverse of `pack`: uint8 bytes to int8 (signed) or uint8 of `shape`."""
    limits(bits, signed)
    n = prod(shape)
    if packed.numel() != -(-n // 8) * bits:
        raise Bad(f"{packed.numel()} bytes are not {n} integers of {bits} bits: check `bits` and `shape`")
    bit = (packed.to(torch.int16).view(-1, bits, 1) >> torch.arange(8, device=packed.device)) & 1
    values = (bit.view(-1, 8, bits) << torch.arange(bits, device=packed.device)).sum(-1).flatten()[:n]
    if signed:
        values = values - ((values >> (bits - 1)) << bits)
    return values.to(torch.int8 if signed else torch.uint8).view(tuple(shape))
