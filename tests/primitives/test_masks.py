from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.primitives import masks


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_top_keeps_exactly_the_largest(keep):
    scores = rand(13, 7)
    mask, k = masks.top(scores, keep), int(keep * 91 + 0.5)
    by_hand = sorted(range(91), key=lambda i: -scores.flatten()[i].item())[:k]
    assert sorted(mask.flatten().nonzero().flatten().tolist()) == sorted(by_hand)


def test_ties_go_to_the_earlier_position_and_the_count_stays_exact():
    assert masks.top(torch.tensor([1.0, 1.0, 1.0, 2.0]), 2).tolist() == [True, False, False, True]
    assert masks.top(torch.zeros(10, dtype=torch.bfloat16), 0.3).tolist() == [True] * 3 + [False] * 7


def test_global_ranking_pools_the_layers_and_layer_ranking_does_not():
    scores = {"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([1.0, 2.0])}
    assert [m.sum().item() for m in masks.top_global(scores, 0.5).values()] == [2, 0]
    assert [m.sum().item() for m in masks.top_layers(scores, 0.5).values()] == [1, 1]
    assert masks.top_layers(scores, {"a": 1.0, "b": 0.5})["a"].all()


@pytest.mark.parametrize("block", [(2, 3), (4, 4), (1, 0), (0, 1), (100, 100)])
def test_blocks_against_a_loop_even_where_they_do_not_divide(block):
    values = rand(5, 7)
    r, c = min(block[0] or 5, 5), min(block[1] or 7, 7)
    pooled = masks.pool_blocks(values, block)
    spread = masks.spread_blocks(pooled, block, values.shape)
    for i in range(5):
        for j in range(7):
            mine = values[i // r * r : i // r * r + r, j // c * c : j // c * c + c].sum()
            torch.testing.assert_close(pooled[i // r, j // c], mine)
            assert spread[i, j] == pooled[i // r, j // c]


def test_erk_meets_its_budget_and_never_exceeds_one():
    shapes = {"first": (64, 3, 3, 3), "wide": (512, 512), "tall": (256, 64), "head": (10, 256)}
    size = {n: torch.Size(s).numel() for n, s in shapes.items()}
    for density in (0.02, 0.1, 0.5, 0.9, 1.0):
        got = masks.erk(shapes, density)
        assert max(got.values()) <= 1 + 1e-12
        assert sum(got[n] * size[n] for n in size) == pytest.approx(density * sum(size.values()))
    free = masks.erk(shapes, 0.02)
    assert free["wide"] / free["tall"] == pytest.approx((1024 / 512**2) / (320 / (256 * 64)))
    assert masks.erk(shapes, 0.5)["head"] == 1.0


def test_cubic_sparsity_at_its_ends_and_middle():
    assert [masks.cubic(d, 1.0, 0.1) for d in (-1, 0, 0.5, 1, 2)] == pytest.approx([1, 1, 0.1 + 0.9 / 8, 0.1, 0.1])


def test_sparsity_counts_exact_zeros():
    got = masks.sparsity({"a": torch.tensor([0.0, 1.0]), "b": torch.zeros(6)})
    assert got == {"total": 7 / 8, "a": 0.5, "b": 1.0}


def test_matrices_leave_head_embedding_and_copies_alone():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb = nn.Embedding(5, 4)
            self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 5)
            self.two.weight, self.out.weight = self.one.weight, self.emb.weight

    net = Net()
    assert list(masks.matrices(net)) == ["one"]
    assert list(masks.matrices(net, ("one", "out"))) == ["one", "out"]
    with pytest.raises(ValueError, match=r"targets.*nothing"):
        masks.matrices(net, ("nothing",))
    with pytest.raises(ValueError, match="output head"):
        masks.matrices(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="keep"):
        masks.share("keep", 0.0)
    nn.utils.parametrize.register_parametrization(net.one, "weight", nn.Identity())
    with pytest.raises(ValueError, match="fold"):
        masks.plain(masks.matrices(net))


def test_a_weight_kept_in_several_tensors_is_refused_with_the_way_out():
    from trainlore.errors import Bad
    from trainlore.primitives.reparam import fold

    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    for ask in (masks.matrices, lambda n: masks.weight_of(n[0]), lambda n: masks.plain({"0": n[0]})):
        with pytest.raises(Bad, match="fold` the model first"):
            ask(net)
    with pytest.raises(Bad, match=r"2 tensors \(WeightNorm\)"):
        masks.stored(net[0])
    weight = net[0].weight.detach().clone()
    torch.testing.assert_close(masks.weight_of(masks.plain(masks.matrices(fold(net)))["0"]), weight)
    with pytest.raises(Bad, match="computed from others"):
        masks.plain({"0": torch.nn.utils.weight_norm(nn.Linear(4, 3))})  # the old one: written anew at every pass
