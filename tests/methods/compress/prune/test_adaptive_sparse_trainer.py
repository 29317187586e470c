from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.compress.distil.kd import KD
from trainlore.methods.compress.prune.adaptive_sparse_trainer import AdaptiveSparseTrainer, strength
from trainlore.methods.compress.prune.magnitude import Magnitude
from trainlore.methods.train.objective.ema import EMA
from trainlore.primitives.holding import hold, let_go
from trainlore.primitives.masks import matrices, stored, weight_of
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world


class Look(Part):
    """Writes down weights and gradients of the first layer before each update."""

    seen: list = []

    def update(self, loop, s, inner):
        layer = next(iter(matrices(loop.model.net).values()))
        self.seen.append((stored(layer).detach().clone(), stored(layer).grad.clone(), layer.weight.detach() != 0))
        inner()


def test_the_gradient_has_the_decay_on_masked_weights_only():
    at, Look.seen = world("digits"), []
    for decay in (0.0, 0.5):
        part = AdaptiveSparseTrainer(decay=decay, rise=0.0)
        Run(0).fit(at["model"].copy(), at["data"], part, Look(), steps=1, **HOW["digits"])
    (weight, plain, kept), (_, pulled, _) = Look.seen
    for i in range(4):
        for j in range(weight.shape[1]):
            want = float(plain[i, j]) + (0.0 if kept[i, j] else 0.5 * float(weight[i, j]))
            assert float(pulled[i, j]) == pytest.approx(want, abs=1e-6)
    assert (plain[~kept] != 0).any()  # straight through the mask


def test_the_authors_ramp():
    got = [strength(t / 40000, 1e-4, 0.25) for t in (0, 5000, 10000, 40000)]  # srste_decay 1e-4, increase_step 10000
    assert got == pytest.approx([0, 0.5e-4, 1e-4, 1e-4]) and strength(0.0, 1.0, 0.0) == 1.0


@pytest.mark.parametrize("more", [(), (EMA(decay=0.5),)])
@pytest.mark.parametrize("name", ["digits", "text"])
def test_the_pattern_holds_exactly_and_masks_move(name, more):
    at = world(name)
    first = {p: weight_of(m).clone() for p, m in matrices(at["model"].net).items()}
    part = AdaptiveSparseTrainer(every=3, teacher=at["teacher"])
    model = Run(0).fit(at["model"], at["data"], part, *more, steps=20, **HOW[name])
    moved = 0
    for path, layer in matrices(model.net).items():
        assert not hasattr(layer, "parametrizations")
        alive = weight_of(layer).unflatten(1, (-1, 4)) != 0
        assert (alive.sum(-1) == 2).all()
        large = first[path].unflatten(1, (-1, 4)).abs()
        moved += int((alive & (large < large.topk(2, -1).values[..., 1:])).sum())
    assert moved


def test_masks_are_renewed_only_every_few_steps_and_the_teacher_counts():
    at = world("digits")
    once = Magnitude(pattern="2:4", tolerance=9.0)(at["model"].copy())
    kept = {p: weight_of(m) != 0 for p, m in matrices(once.net).items()}
    made = []
    for fields in ({"every": 99}, {"every": 99, "teacher": at["teacher"]}):
        model = Run(0).fit(at["model"].copy(), at["data"], AdaptiveSparseTrainer(**fields), steps=9, **HOW["digits"])
        made.append({p: weight_of(m) for p, m in matrices(model.net).items()})
        assert all(torch.equal(w != 0, kept[p]) for p, w in made[-1].items())
    assert not torch.equal(*(next(iter(m.values())) for m in made))


@pytest.mark.parametrize(
    "fields", [{"pattern": "4:2"}, {"decay": -1.0}, {"every": 0}, {"rise": 2.0}, {"alpha": 1.5}, {"pattern": "2:7"}]
)
def test_bad_fields_are_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match="runs of 7" if "2:7" in fields.values() else next(iter(fields))):
        Run(0).fit(at["model"], at["data"], AdaptiveSparseTrainer(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """Loss on unseen rows at 2:4 after retraining with the dense model as teacher; the rival's mask never changes.

    The decay is such that decay * |w| of masked weights is of the size of gradients here.
    """
    at, run = world("text"), Run(seed)
    model, dense = at["teacher"].copy(), at["teacher"]
    how = HOW["text"] | {"steps": 60}
    if arm == "method":
        model = run.fit(model, at["data"], AdaptiveSparseTrainer(teacher=dense, decay=0.1), **how)
    else:
        model = run.step(Magnitude(pattern="2:4", tolerance=9.0), model)
        layers = matrices(model.net)
        hold(layers)
        model = run.fit(model, at["data"], KD(teacher=dense, alpha=0.67, temperature=2.0), **how)
        let_go(layers)

    def read(batch, out):
        return nn.functional.cross_entropy(out[:, :7].flatten(0, 1), batch["input_ids"][:, 1:8].flatten()).expand(
            len(out)
        )

    return float(run.infer(model, at["held_out"], read).mean())


CLAIM = Claim(
    method="adaptive_sparse_trainer",
    world="text",
    rival="2:4 by magnitude once, then the same retraining",
    quantity="loss on unseen rows at 2:4",
    better="lower",
    measure=measure,
    seeds=10,
    quick=2,
)
