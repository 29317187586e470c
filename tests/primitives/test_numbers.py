from __future__ import annotations

import pytest
import torch

from trainlore.primitives import numbers
from trainlore.primitives.grids import Grid, integers


def nearest(weight, bits, per="channel", symmetric=True):
    return Grid.of(weight, integers(bits, symmetric), per).round(weight)


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("per", ["tensor", "channel", 3])
@pytest.mark.parametrize("symmetric", [True, False])
def test_nearest_against_a_loop(per, symmetric):
    w, bits = rand(4, 7) + 0.3, 4
    got = nearest(w, bits, per, symmetric)
    for i in range(4):
        for j in range(7):
            lane = {"tensor": w.flatten(), "channel": w[i]}.get(per, w[i, j // 3 * 3 : j // 3 * 3 + 3])
            if symmetric:
                scale = 2 * lane.abs().max() / 15 * (1 - 1e-6)
                mine = (w[i, j] / scale).round().clamp(-8, 7) * scale
            else:
                low, high = min(lane.min(), torch.tensor(0.0)), max(lane.max(), torch.tensor(0.0))
                scale, zero = (high - low) / 15, (-low / ((high - low) / 15)).round()
                mine = ((w[i, j] / scale).round() + zero).clamp(0, 15).sub(zero) * scale
            torch.testing.assert_close(got[i, j], mine)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("signed", [True, False])
def test_pack_round_trips_exactly_at_odd_sizes(bits, signed):
    low, high = numbers.limits(bits, signed)
    for n in (0, 1, 7, 8, 9, 33):
        ints = torch.arange(n).mul(5).remainder(high - low + 1).add(low).to(torch.int8 if signed else torch.uint8)
        packed = numbers.pack(ints, bits)
        assert packed.dtype == torch.uint8 and len(packed) == -(-n // 8) * bits
        assert torch.equal(numbers.unpack(packed, bits, ints.shape, signed), ints)
    assert numbers.pack(torch.tensor([1, -2, 7], dtype=torch.int8), 4)[:2].tolist() == [1 + 16 * 14, 7]


def test_more_bits_and_smaller_groups_lose_less():
    w = rand(16, 64)
    by_bits = [(nearest(w, b) - w).square().mean() for b in (2, 3, 4, 6, 8)]
    by_lane = [(nearest(w, 4, per) - w).square().mean() for per in ("tensor", "channel", 16, 4)]
    assert by_bits == sorted(by_bits, reverse=True) and by_lane == sorted(by_lane, reverse=True)


def test_zero_stays_zero_and_dead_lanes_are_finite():
    w = torch.zeros(3, 5)
    w[1], w[2, 2] = torch.linspace(2, 3, 5), -1.0
    for symmetric in (True, False):
        got = nearest(w, 3, "channel", symmetric)
        assert got.isfinite().all() and (got[w == 0] == 0).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="bits=9"):
        nearest(rand(2, 2), 9)
    with pytest.raises(ValueError, match="per="):
        nearest(rand(2, 2), 4, "row")
    with pytest.raises(ValueError, match="does not fit"):
        numbers.pack(torch.tensor([8], dtype=torch.int8), 4)
    with pytest.raises(ValueError, match="bytes"):
        numbers.unpack(torch.zeros(3, dtype=torch.uint8), 4, (5,))


@pytest.mark.parametrize("symmetric", [True, False])
def test_steps_against_a_loop_and_their_slopes(symmetric):
    x = torch.tensor([-1.3, -0.2, 0.0, 0.35, 0.9, 4.0], requires_grad=True)
    scale, zero = torch.tensor(0.25, requires_grad=True), torch.tensor(0.0 if symmetric else 2.2, requires_grad=True)
    low, high = (-4, 3) if symmetric else (0, 7)
    got, middle = numbers.stepped(x, scale, numbers.straight(zero).clamp(low, high), 3, symmetric), round(zero.item())
    for i, value in enumerate(x.tolist()):
        whole = min(high, max(low, round(value / 0.25) + middle))
        assert got[i].item() == pytest.approx((whole - middle) * 0.25)
    inside = (got.detach() > (low - zero.round()) * 0.25) & (got.detach() < (high - zero.round()) * 0.25)
    got.sum().backward()
    assert torch.equal(x.grad, inside.float())  # straight through, and nothing of what is cut off
    whole = got.detach() / 0.25
    torch.testing.assert_close(scale.grad, torch.where(inside, whole - x.detach() / 0.25, whole).sum())
    torch.testing.assert_close(zero.grad, -0.25 * (~inside).sum())
