from __future__ import annotations

import pytest
import torch

from trainlore.claims import Claim
from trainlore.loop import Loop
from trainlore.methods.train.continual.replay import Replay, joined
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_rows_are_joined_and_padded_to_the_longer():
    new = {
        "row": torch.tensor([4, 7]),
        "input_ids": torch.ones(2, 3).long(),
        "labels": torch.ones(2, 3).long(),
        "weight": torch.ones(2),
    }
    past = {
        **{k: 2 * v[:1] for k, v in new.items()},
        "input_ids": torch.full((1, 2), 2),
        "labels": torch.full((1, 2), 2),
        "more": torch.ones(1),
    }
    both = joined(new, past)
    assert both.keys() == new.keys()
    assert both["row"].tolist() == [4, 7, -1] and both["weight"].tolist() == [1, 1, 2]
    assert both["input_ids"].tolist() == [[1, 1, 1], [1, 1, 1], [2, 2, 0]]
    assert both["labels"].tolist() == [[1, 1, 1], [1, 1, 1], [2, 2, -100]]
    with pytest.raises(ValueError, match="memory has no column weight"):
        joined(new, {k: v for k, v in past.items() if k != "weight"})


@pytest.mark.parametrize("share, old", [(0.5, 4), (0.3, 2), (0.0, 0)])
def test_the_batch_keeps_its_size(share, old):
    at = world("digits")
    part, loop = (
        Replay(memory=at["test"], share=share),
        Loop(Run(0), at["model"], at["data"], 10, 8, torch.device("cpu")),
    )
    asked = []
    batch = part.draw(loop, {}, 8, lambda n: asked.append(n) or at["data"].batch(range(n), at["model"]))
    assert asked == [8 - old] and len(batch["labels"]) == 8
    known = {tuple(x) for x in at["test"]["features"].tolist()}
    assert sum(tuple(x) in known for x in batch["features"].tolist()) == old


def test_text_of_the_memory_is_encoded_on_the_way():
    at = world("text")
    part = Replay(memory=at["held_out"].without("input_ids", "labels"))
    with_memory = Run(0).fit(at["model"], at["data"], part, steps=2, **HOW["text"])
    assert (
        with_memory.about["curve"]["loss"]
        != Run(0).fit(world("text")["model"], at["data"], steps=2, **HOW["text"]).about["curve"]["loss"]
    )


@pytest.mark.parametrize("field, value", [("share", 1.0), ("share", -0.1), ("memory", None)])
def test_bad_fields_are_named(field, value):
    at = world("digits")
    fields = {"memory": at["test"], field: at["test"].take([]) if field == "memory" else value}
    with pytest.raises(ValueError, match=field):
        Run(0).fit(at["model"], at["data"], Replay(**fields), steps=1, **HOW["digits"])


def measure(seed: int, arm: str) -> float:
    """Digits 0 to 4, then 5 to 9 with 25 rows of the first remembered, or none."""
    at, run = world("digits", seed), Run(seed)
    old, new = (at["data"].where((at["data"]["label"] < 5) == early) for early in (True, False))
    model = run.fit(at["model"], old, steps=60, **HOW["digits"])
    memory = old.take(run.numpy("memory").permutation(len(old))[:25])
    run.fit(model, new, Replay(memory=memory, share=0.5 if arm == "method" else 0.0), steps=60, **HOW["digits"])
    return float(run.infer(model, at["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="replay",
    world="digits",
    rival="no memory",
    quantity="accuracy on old and new classes",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
