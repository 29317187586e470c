from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.compress.prune.progressive_pruning import ProgressivePruning, densities, narrowed
from trainlore.methods.compress.quantize.nearest import Nearest
from trainlore.primitives.masks import matrices, sparsity, weight_of
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import world


class Masks(Part):
    """Writes down which weights live, at the start of each training, and the rows of it."""

    seen: list = []

    def start(self, loop):
        alive = {p: m.weight.detach() != 0 for p, m in matrices(loop.model.net).items()}
        self.seen.append((alive, loop.data.ids.tolist()))
        return {}


def test_the_authors_shares():
    assert densities(0.8, 0.8**4.5, 8) == pytest.approx([0.8 ** (1 + 3.5 * t / 7) for t in range(8)])
    assert densities(0.8, 0.3, 1) == [0.3]


def test_what_is_gone_stays_gone_and_the_count_is_of_all():
    scores = {"a": torch.tensor([[9.0, 1.0], [2.0, 3.0]]), "b": torch.tensor([[5.0, 8.0]])}
    kept = {"a": torch.tensor([[False, True], [True, True]]), "b": torch.tensor([[True, True]])}
    found = narrowed(scores, kept, 0.5)
    assert found["a"].tolist() == [[False, False], [False, True]] and found["b"].tolist() == [[True, True]]
    assert sum(int(m.sum()) for m in narrowed(scores, kept, 1.0).values()) == 5


def test_snip_against_the_slope_of_a_gate():
    """|dL/dw w| is the slope of the loss by a gate c on w, at c = 1."""
    at = world("digits")
    model, rows = at["model"], at["data"].take(range(20))
    layers = matrices(model.net)
    scores = ProgressivePruning()._scores(Run(0), model, rows, layers)
    path, layer = next(iter(layers.items()))
    batch = rows.batch(range(20), model)
    for i, j in ((0, 20), (3, 30), (5, 12)):
        w, found = float(layer.weight[i, j]), []
        for c in (0.99, 1.01):
            layer.weight.data[i, j] = c * w
            with torch.no_grad():
                loss = nn.functional.cross_entropy(
                    model.net.double()(batch["features"].double()), batch["labels"], reduction="sum"
                )
            found.append(float(loss))
        layer.weight.data[i, j] = w
        assert float(scores[path][i, j]) == pytest.approx(abs(found[1] - found[0]) / 0.02, rel=1e-2, abs=1e-4)


@pytest.mark.parametrize(("score", "replay"), [("snip", True), ("magnitude", False)])
def test_masks_are_nested_shares_are_met_and_rows_arrive_in_order(score, replay):
    at, Masks.seen = world("digits"), []
    fields = {"stages": 4, "keep": 0.2, "steps": 6, "lr": 1e-2, "score": score, "replay": replay, "inner": (Masks(),)}
    model = Run(0).step(ProgressivePruning(**fields), at["model"], at["data"])
    before: dict = {}
    for at_stage, want in enumerate(densities(0.8, 0.2, 4)):
        alive, ids = Masks.seen[at_stage]
        share = sum(int(a.sum()) for a in alive.values()) / sum(a.numel() for a in alive.values())
        assert share == pytest.approx(want, abs=1e-3)
        assert ids == list(range(0 if replay else 100 * at_stage, 100 * (at_stage + 1)))
        if at_stage:
            assert all((alive[p] <= before[p]).all() for p in alive)
        before = alive
    left = {p: weight_of(m) for p, m in matrices(model.net).items()}
    assert sparsity(left)["total"] == pytest.approx(0.8, abs=1e-3)
    assert all(torch.equal(w != 0, before[p]) for p, w in left.items())
    assert [told["rows"] for told in model.about["progressive_pruning"]] == (
        [100, 200, 300, 400] if replay else [100] * 4
    )


def test_bad_input_is_named():
    at = world("digits")
    for fields, word in (
        ({"keep": 0.0}, "keep"),
        ({"first": 0.1}, "first"),
        ({"score": "grasp"}, "score"),
        ({"stages": 0}, "stages"),
        ({"stages": 500}, "rows"),
        ({"share": 0.0}, "share"),
    ):
        with pytest.raises(ValueError, match=word):
            ProgressivePruning(**fields)(at["model"].copy(), at["data"])
    with pytest.raises(ValueError, match="quantized already"):
        ProgressivePruning()(Nearest(tolerance=9.0)(at["teacher"]), at["data"])


def measure(seed: int, arm: str) -> float:
    """Test accuracy at the end of a stream in 4 portions, a tenth of the weights left; the rival prunes all at the start."""
    at, run = world("digits"), Run(seed)
    first = 0.8 if arm == "method" else 0.1
    app = ProgressivePruning(keep=0.1, first=first, stages=4, steps=30, lr=1e-2)
    model = run.step(app, at["model"], at["data"].take(run.numpy("order").permutation(len(at["data"]))))
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="progressive_pruning",
    world="digits",
    rival="all at once before the first portion",
    quantity="test accuracy after the last portion with a tenth of the weights",
    better="higher",
    measure=measure,
    seeds=20,
    quick=4,
)
