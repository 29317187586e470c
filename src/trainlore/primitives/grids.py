"""Number formats: the values that a few bits can hold in each lane of a weight; to them, back, and packed tight.

A `Grid` is a format and the scales that were found for one weight. Whatever method chooses the values, its grid says how
they are stored, so that an export writes exactly the weights that were measured.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.primitives.masks import weight_of, write
from trainlore.primitives.numbers import lanes, limits, pack, scales, unlanes, unpack

FLOATS = {  # exponent bits, mantissa bits, bias, largest value; e4m3 keeps one code for NaN and has no infinity
    "e2m1": (2, 1, 1, 6.0),
    "e3m0": (3, 0, 3, 16.0),
    "e4m3": (4, 3, 7, 448.0),
    "e5m2": (5, 2, 15, 57344.0),
}
FORMATS = (*(f"int{b}" for b in range(2, 9)), *(f"uint{b}" for b in range(2, 9)), *FLOATS)


def bits_of(form: str) -> int:
    """Bits of one value of a format."""
    if form in FLOATS:
        return 1 + sum(FLOATS[form][:2])
    if form not in FORMATS:
        raise Bad(f"format={form!r} is not known: give one of {', '.join(FORMATS)}")
    return int(form.lstrip("uint"))


def integers(bits: int, symmetric: bool) -> str:
    """The format of whole numbers of so many bits: around 0, or with a zero point."""
    limits(bits)
    return f"{'int' if symmetric else 'uint'}{bits}"


@cache
def levels(form: str) -> Tensor:
    """All magnitudes of a small float, in the order of their codes: (2^(bits-1) - NaN codes,) float32, from 0 upwards."""
    exponent, mantissa, bias, most = FLOATS[form]
    code = torch.arange(2 ** (exponent + mantissa), dtype=torch.float64)
    e, m = (code / 2**mantissa).floor(), code % 2**mantissa / 2**mantissa
    values = torch.where(e == 0, m * 2.0 ** (1 - bias), (1 + m) * 2.0 ** (e - bias))
    return values[values <= most].float()


def to_float(values: Tensor, form: str) -> Tensor:
    """The nearest value of a small float (halves to the even code), beyond the largest the largest: same shape, float32."""
    grid = levels(form).to(values.device)
    middle = (grid[1:] + grid[:-1]) / 2
    size = values.float().abs()
    at = torch.bucketize(size, middle)  # a value half way goes down
    up = (at < len(middle)) & (size == middle[at.clamp(max=len(middle) - 1)]) & (at % 2 == 1)
    return grid[at + up].copysign(values.float())


def snap(x: Tensor, form: str, scale: Tensor, zero: Tensor) -> Tensor:
    """The nearest values of the format at this scale and zero point, shaped to broadcast with x: the shape of x."""
    if form in FLOATS:
        return to_float(x / scale, form) * scale
    low, high = limits(bits_of(form), form.startswith("i"))
    return (((x / scale).round() + zero).clamp(low, high) - zero) * scale


@dataclass(frozen=True, eq=False)
class Grid:
    """The values one weight (out, ...) may take: scale * (code - zero) of integers, scale * value of small floats."""

    form: str
    """int2 ... int8 (around 0), uint2 ... uint8 (with a zero point), e2m1, e3m0 (4 bits), e4m3, e5m2 (8 bits)."""
    per: str | int
    """Who shares a scale: tensor, channel, or a group size such as 128."""
    scale: Tensor
    """(lanes, 1) float32, above 0."""
    zero: Tensor
    """(lanes, 1) int32; zeros where the format has no zero point."""

    @staticmethod
    def of(weight: Tensor, form: str, per: str | int = "channel", clip: float = 1.0) -> Grid:
        """The grid that the largest values of each lane of a weight ask for; `clip` < 1 shrinks it."""
        if not weight.isfinite().all():
            raise Bad("a weight holds infinities or NaN: the model is broken before it is compressed")
        bits = bits_of(form)
        if form not in FLOATS:
            return Grid(form, per, *scales(weight, bits, per, form.startswith("i"), clip))
        rows = lanes(weight.detach().float(), per)
        scale = clip * rows.abs().amax(1, keepdim=True) / FLOATS[form][3]
        scale = scale.where(scale > torch.finfo(torch.float32).tiny, torch.ones_like(scale))
        return Grid(form, per, scale, torch.zeros_like(scale, dtype=torch.int32))

    @property
    def bits(self) -> int:
        """Bits of one value."""
        return bits_of(self.form)

    def round(self, weight: Tensor) -> Tensor:
        """The nearest values of the grid: the shape of `weight`, float32. No gradient."""
        rows = lanes(weight.detach().float(), self.per)
        return unlanes(self.values(rows, self.scale, self.zero), weight.shape, self.per)

    def values(self, weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The nearest values where scale and zero, shaped to broadcast with `weight`, are given: float32."""
        return snap(weight, self.form, scale, zero)

    def columns(self, width: int) -> tuple[Tensor, Tensor]:
        """Scale and zero of every entry of a weight (out, width): each (out or 1, width or 1), to broadcast with it."""
        if not isinstance(self.per, int):
            return self.scale, self.zero
        groups = -(-width // self.per)
        wide = [t.view(-1, groups).repeat_interleave(self.per, 1)[:, :width] for t in (self.scale, self.zero)]
        return wide[0], wide[1]

    def codes(self, weight: Tensor) -> Tensor:
        """The code of each value: int8 (int), uint8 (uint, and floats: sign bit, exponent, mantissa). Shape of `weight`."""
        rows = lanes(weight.detach().float(), self.per) / self.scale
        if self.form in FLOATS:
            grid = levels(self.form).to(rows.device)
            code = torch.bucketize(to_float(rows, self.form).abs(), grid)
            code = code + (rows.signbit().long() << (self.bits - 1))
            return unlanes(code, weight.shape, self.per).to(torch.uint8)
        low, high = limits(self.bits, self.form.startswith("i"))
        ints = (rows.round() + self.zero).clamp(low, high)
        return unlanes(ints, weight.shape, self.per).to(torch.int8 if self.form.startswith("i") else torch.uint8)

    def back(self, codes: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The values of codes (out, ...), in their shape."""
        if self.form in FLOATS:
            sign = 1 << (self.bits - 1)
            grid = levels(self.form).to(codes.device)
            flat = codes.long()
            values = grid[flat & (sign - 1)] * torch.where(flat & sign > 0, -1.0, 1.0)
            return unlanes(lanes(values, self.per) * self.scale, codes.shape, self.per).to(dtype)
        return unlanes((lanes(codes.float(), self.per) - self.zero) * self.scale, codes.shape, self.per).to(dtype)

    def holds(self, weight: Tensor) -> bool:
        """Whether the weight (of any dtype) lies on the grid exactly: nothing was written to it since it was rounded."""
        return bool(torch.equal(self.back(self.codes(weight), weight.dtype), weight.detach()))

    def packed(self, weight: Tensor) -> Tensor:
        """Its codes without gaps: uint8 (ceil(n / 8) * bits,)."""
        return pack(self.codes(weight), self.bits)

    def unpacked(self, packed: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight of this shape that `packed` holds."""
        return self.back(unpack(packed, self.bits, shape, signed=self.form.startswith("i")), dtype)

    def state(self) -> dict[str, object]:
        """All of it as a tree of tensors, numbers and text."""
        return {"form": self.form, "per": self.per, "scale": self.scale, "zero": self.zero}


@dataclass(frozen=True, eq=False)
class Codebook:
    """A weight (out, in) as numbers of vectors: every run of d inputs of a channel is one of k vectors of length d."""

    book: Tensor
    """(k, d) float32, k at most 256."""
    assigned: Tensor
    """(out, ceil(in / d)) uint8: which vector; the last of a channel is cut off where d does not divide its inputs."""

    @property
    def bits(self) -> int:
        """Bits of one code, at least 2."""
        return max(2, (len(self.book) - 1).bit_length())

    def back(self, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight (out, width)."""
        return self.book[self.assigned.long()].flatten(1)[:, :width].to(dtype)

    def holds(self, weight: Tensor) -> bool:
        """Whether the weight is exactly what the codes say: nothing was written to it since."""
        rows = weight.detach().flatten(1)
        return bool(torch.equal(self.back(rows.shape[1], weight.dtype), rows))

    def packed(self) -> Tensor:
        """The codes without gaps: uint8."""
        return pack(self.assigned, self.bits)

    def state(self) -> dict[str, object]:
        """All of it as a tree of tensors."""
        return {"book": self.book, "assigned": self.assigned}


def vectors(weight: Tensor, d: int) -> Tensor:
    """The runs of d inputs of each channel, the last filled up with zeros: (out, in) -> (out, ceil(in / d), d)."""
    rows = weight.detach().float().flatten(1)
    return torch.nn.functional.pad(rows, (0, -rows.shape[1] % d)).unflatten(1, (-1, d))


def stored_bits(weight: Tensor, grid: Grid | Codebook) -> int:
    """Bits a weight costs in this form: codes, and a 16-bit scale a lane with its zero point, or 16-bit vectors."""
    if isinstance(grid, Codebook):
        return grid.assigned.numel() * grid.bits + grid.book.numel() * 16
    return weight.numel() * grid.bits + grid.scale.numel() * (16 + (grid.bits if grid.form.startswith("u") else 0))


def from_state(states: Mapping[str, dict]) -> dict[str, Grid | Codebook]:
    """Grids by path out of what `state` gave."""
    return {path: Codebook(**s) if "book" in s else Grid(**s) for path, s in states.items()}


def free(model: Model, layers: Mapping[str, nn.Module]) -> None:
    """Refuse layers that are on a grid already: rounding twice loses twice, and says so nowhere."""
    for path, layer in layers.items():
        if path in model.grids and model.grids[path].holds(weight_of(layer)):
            raise Bad(
                f"{path} is quantized already: start from the model before that, or name other layers in `targets`"
            )


def settle(model: Model, path: str, layer: nn.Module, matrix: Tensor, grid: Grid | Codebook) -> None:
    """Write the values (out, in) of a grid into a layer, and note on the model how they are to be stored."""
    write(layer, matrix)
    model.grids[path] = grid
