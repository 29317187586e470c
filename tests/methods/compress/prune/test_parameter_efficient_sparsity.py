from __future__ import annotations

import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.compress.prune.parameter_efficient_sparsity import (
    ParameterEfficientSparsity,
    Sparse,
    importance,
)
from trainlore.methods.train.objective.ema import EMA
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world


class Levels(Part):
    """Writes down the share that is kept at each pass."""

    seen: list = []

    def forward(self, loop, s, batch, inner):
        layer = next(iter(matrices(loop.model.net).values()))
        self.seen.append(float((layer.weight != 0).float().mean()))
        return inner(batch)


def test_scores_mask_and_gradients_against_a_loop():
    g = torch.Generator().manual_seed(0)
    layer = nn.Linear(6, 4, bias=False).double()
    made = Sparse(layer, (2, 3), 0.5, (0.7, 0.3), g).double()
    made.level.fill_(0.25)
    for p in made.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) / 2
    w0 = layer.weight.detach()
    w = w0 + 0.5 * made.u.detach() @ made.v.detach()
    s = torch.empty(4, 6, dtype=torch.float64)
    for i in range(4):
        for j in range(6):
            low = sum(float(made.a.data[i, k]) * float(made.b.data[k, j]) for k in range(3))
            s[i, j] = abs(float(w[i, j])) + 0.7 * low + 0.3 * (float(made.row.data[i]) + float(made.column.data[j]))
    torch.testing.assert_close(importance(w, made.a @ made.b, made.row, made.column, 0.7, 0.3).detach(), s)
    kept = s >= s.flatten().sort().values[-6]
    out = made(w0)
    torch.testing.assert_close(out.detach(), w * kept)
    up = torch.randn(4, 6, generator=g, dtype=torch.float64)
    (out * up).sum().backward()
    through = up * w  # dL/dM, which the scores get as it is
    torch.testing.assert_close(made.row.grad, 0.3 * through.sum(1))
    torch.testing.assert_close(made.b.grad, 0.7 * made.a.detach().T @ through)
    torch.testing.assert_close(made.v.grad, 0.5 * made.u.detach().T @ (up * kept + through * w.sign()))


def test_the_share_falls_on_the_authors_schedule():
    at, Levels.seen = world("digits"), []
    part = ParameterEfficientSparsity(keep=0.2, warmup=0.1, cooldown=0.3)
    Run(0).fit(at["model"], at["data"], part, Levels(), steps=20, **HOW["digits"])
    want = [0.2 + 0.8 * (1 - min(1.0, max(0.0, (t / 20 - 0.1) / 0.6))) ** 3 for t in range(20)]
    assert Levels.seen == pytest.approx(want, abs=2e-3) and Levels.seen[-1] == pytest.approx(0.2, abs=1e-3)


@pytest.mark.parametrize("more", [(), (EMA(decay=0.5),)])
def test_exact_zeros_are_left_and_the_rest_is_as_it_was(more):
    at = world("digits")
    at["model"].net[0].bias.requires_grad_(False)
    before = {n: v.clone() for n, v in at["model"].net.state_dict().items()}
    model = Run(0).fit(at["model"], at["data"], ParameterEfficientSparsity(keep=0.25), *more, steps=20, **HOW["digits"])
    for path, layer in matrices(model.net).items():
        assert not hasattr(layer, "parametrizations") and layer.weight.requires_grad
        assert (weight_of(layer) != 0).float().mean() == pytest.approx(0.25, abs=1e-3)
        assert torch.equal(layer.bias, before[f"{path}.bias"])
    assert not model.net[0].bias.requires_grad and model.net.state_dict().keys() == before.keys()


@pytest.mark.parametrize("fields", [{"keep": 0.0}, {"rank": 0}, {"warmup": 0.9}, {"trainable": ("nothing",)}])
def test_bad_fields_are_named(fields):
    at = world("digits")
    with pytest.raises(ValueError, match=next(iter(fields))):
        Run(0).fit(at["model"], at["data"], ParameterEfficientSparsity(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """A model that names digits learns to tell odd from even with a tenth of its weights; the rival ranks by magnitude."""
    at, run = world("digits"), Run(seed)
    data, test = (d.new({"features": d["features"], "label": d["label"] % 2}) for d in (at["data"], at["test"]))
    fields = {} if arm == "method" else {"alpha1": 0.0, "alpha2": 0.0}
    part = ParameterEfficientSparsity(keep=0.1, trainable=("bias",), **fields)
    model = run.fit(at["teacher"].copy(), data, part, steps=100, **HOW["digits"])
    return float(run.infer(model, test, lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="parameter_efficient_sparsity",
    world="digits",
    rival="the same training, ranked by magnitude alone",
    quantity="test accuracy on a new task with a tenth of the weights",
    better="higher",
    measure=measure,
    seeds=20,
    quick=4,
)
