from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainlore.nouns import Model
from trainlore.primitives.grids import (
    FLOATS,
    FORMATS,
    Codebook,
    Grid,
    bits_of,
    free,
    from_state,
    levels,
    settle,
    to_float,
    vectors,
)
from trainlore.primitives.masks import matrices, pattern_of, top_pattern, weight_of
from trainlore.store import Store
from trainlore.worlds.tiny import world


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMATS),
    out=st.integers(1, 9),
    wide=st.integers(1, 33),
    per=st.sampled_from(["tensor", "channel", 1, 3, 8, 64]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_what_is_rounded_packs_and_comes_back_exactly(form, out, wide, per, dtype):
    w = rand(out, wide, seed=out * 100 + wide).to(dtype)
    grid = Grid.of(w, form, per)
    rounded = grid.round(w).to(dtype)
    assert grid.holds(rounded)
    again = from_state({"layer": grid.state()})["layer"]
    assert torch.equal(again.unpacked(grid.packed(rounded), (out, wide), dtype), rounded)
    assert grid.packed(rounded).numel() == -(-out * wide // 8) * bits_of(form)
    gap = (rounded.float() - w.float()).abs()
    scale, _ = grid.columns(wide)
    widest = (
        levels(form).diff().max() / 2 if form in FLOATS else 1.0
    )  # an integer grid of 2 bits ends half a step early
    assert (gap <= scale * widest * 1.01 + 0.01 * w.float().abs()).all()


@pytest.mark.parametrize(("form", "name"), [("e4m3", "float8_e4m3fn"), ("e5m2", "float8_e5m2")])
def test_eight_bit_floats_are_those_of_torch(form, name):
    x = torch.cat([rand(4000) * s for s in (0.001, 0.1, 1.0, 50.0)]).clamp(-440, 440)
    assert torch.equal(to_float(x, form), x.to(getattr(torch, name)).float())
    assert torch.equal(
        levels(form), torch.arange(len(levels(form)), dtype=torch.uint8).view(getattr(torch, name)).float()
    )


def test_four_bit_floats_by_hand():
    assert levels("e2m1").tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert levels("e3m0").tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    x = torch.tensor([0.25, 0.75, 1.25, 2.5, 5.0, 7.0, -0.3, -3.5])
    assert to_float(x, "e2m1").tolist() == [0.0, 1.0, 1.0, 2.0, 4.0, 6.0, -0.5, -4.0]  # halves to the even code


def test_a_codebook_holds_what_it_says():
    w = rand(6, 10)
    runs = vectors(w, 4)
    assert runs.shape == (6, 3, 4) and (runs[:, 2, 2:] == 0).all()
    book = rand(16, 4, seed=1)
    assigned = torch.cdist(runs.flatten(0, 1), book).argmin(1).view(6, 3).to(torch.uint8)
    kept = Codebook(book, assigned)
    assert kept.holds(kept.back(10)) and not kept.holds(w)
    assert kept.bits == 4 and kept.packed().numel() == 12  # 18 codes, filled up to 24


def test_a_model_remembers_its_grids_through_copy_store_and_disk(tmp_path):
    model = world("text")["teacher"].copy()
    path, layer = next(iter(matrices(model.net).items()))
    grid = Grid.of(weight_of(layer), "int4", 8)
    settle(model, path, layer, grid.round(weight_of(layer)), grid)
    Store(tmp_path / "store").put("key", model, {"record": {}})
    for other in (model.copy(), Store(tmp_path / "store").get("key"), Model.of(str(model.save(tmp_path / "m")))):
        assert other.grids[path].holds(weight_of(other.net.get_submodule(path)))
        with pytest.raises(ValueError, match="quantized already"):
            free(other, matrices(other.net))
    with torch.no_grad():
        layer.weight.mul_(1.01)
    free(model, matrices(model.net))  # trained on since: no grid any more
    assert not grid.holds(layer.weight)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="format='int9'"):
        bits_of("int9")
    with pytest.raises(ValueError, match="infinities"):
        Grid.of(torch.tensor([[1.0, torch.inf]]), "int4")


def test_patterns_keep_the_largest_of_every_run():
    scores = rand(5, 12).abs()
    mask = top_pattern(scores, 2, 4)
    for row in range(5):
        for at in range(0, 12, 4):
            kept = {at + int(i) for i in scores[row, at : at + 4].topk(2).indices}
            assert {j for j in range(at, at + 4) if mask[row, j]} == kept
    assert top_pattern(torch.zeros(1, 4), 2, 4).tolist() == [[True, True, False, False]]
    assert pattern_of("2:4") == (2, 4) and pattern_of("") is None
    for bad in ("4", "5:4", "a:b", "0:4"):
        with pytest.raises(ValueError, match="n:m"):
            pattern_of(bad)
    with pytest.raises(ValueError, match="runs of 4"):
        top_pattern(rand(2, 6), 2, 4)
