from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.continual.lae import LAE, _Task, by_class, local_loss
from trainlore.primitives.experts import Pair, Surer, pairs, surer, use
from trainlore.primitives.reparam import adapt
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_loss_is_among_the_tasks_classes():
    logits, labels, classes = rand(3, 6), torch.tensor([4, 1, 4]), torch.tensor([1, 4])
    expected = [
        -torch.log(torch.exp(logits[i, y]) / sum(torch.exp(logits[i, c]) for c in (1, 4))) for i, y in enumerate(labels)
    ]
    torch.testing.assert_close(local_loss(logits, labels, classes), torch.stack(expected).float())


def test_classes_are_cut_into_tasks_in_order():
    assert by_class(np.array([9, 0, 5, 5, 2]), 2).tolist() == [1, 0, 1, 1, 0]
    assert np.bincount(by_class(np.arange(10), 3)).tolist() == [4, 3, 3]
    with pytest.raises(ValueError, match="tasks"):
        by_class(np.arange(3), 4)


def test_the_adapter_stands_still_while_the_head_settles():
    at = world("digits")
    model = adapt(at["model"], lambda path, weight: Pair(weight, 2, Run(0).rng(path)))
    head = model.net[-1].requires_grad_(True)
    before, b = head.weight.detach().clone(), next(pairs(model.net)).b
    how = {**HOW["digits"], "steps": 10}
    part = dict(classes=tuple(range(10)), decay=0.9)
    Run(0).fit(model, at["data"], _Task(**part, still=1.0), **how)
    assert not b.any() and not torch.equal(head.weight, before)
    Run(0).fit(model, at["data"], _Task(**part, still=0.5), **how)
    assert b.any() and not torch.equal(next(pairs(model.net)).slow_b, b)


def test_what_is_handed_back():
    fields = {"tasks": 2, "steps": 8, "rank": 2, "decay": 0.5, "precision": "fp32", "lr": 1e-2}
    made = {}
    for expert in ("both", "online", "offline"):
        at = world("digits")
        rows = at["data"].with_(task=(at["data"]["label"] % 2 == 0).astype(np.int64))  # even digits are the later task
        made[expert] = LAE(**fields, expert=expert)(Run(0), at["model"], rows)
    batch = at["test"].batch(range(20), at["model"])
    with torch.no_grad():
        both, online, offline = (made[e](batch) for e in made)
    torch.testing.assert_close(both, surer(online, offline))
    assert not torch.allclose(online, offline) and type(made["both"].net) is Surer
    assert [type(m) for m in made["online"].net.modules()] == [type(m) for m in world("digits")["model"].net.modules()]
    use(made["both"].net.net, offline=True)
    with torch.no_grad():
        torch.testing.assert_close(made["both"].net.net(batch["features"]), offline)


@pytest.mark.parametrize("field, value", [("expert", "third"), ("decay", 2.0), ("still", -1.0), ("tasks", 99)])
def test_bad_fields_are_named(field, value):
    at = world("digits")
    with pytest.raises(ValueError, match=field):
        LAE(**{field: value})(Run(0), at["model"], at["data"])
    with pytest.raises(ValueError, match="classifier"):
        LAE()(Run(0), world("text")["model"], at["data"])


def turned(data):
    pixels = np.asarray(data["features"]).reshape(-1, 8, 8)
    return data.with_(features=np.ascontiguousarray(np.rot90(pixels, axes=(1, 2)).reshape(-1, 64)))


def measure(seed: int, arm: str) -> float:
    """Pretrained on turned digits; then two upright classes at a time, five times. The rival trains everything."""
    at, run = world("digits", seed), Run(seed)
    model, data = run.fit(at["model"], turned(at["data"]), steps=100, **HOW["digits"]), at["data"]
    how = {"steps": 40, "lr": 1e-2, "batch_size": 24, "precision": "fp32"}
    if arm == "method":
        model = run.step(LAE(**how, decay=0.99), model, data)
    else:
        for task in range(5):
            run.fit(model, data.where(by_class(data["label"], 5) == task), **how)
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="lae",
    world="digits",
    rival="plain fine-tuning, task after task",
    quantity="accuracy on all classes after the last task",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
