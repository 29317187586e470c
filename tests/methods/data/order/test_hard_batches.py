"""Hard batches: the authors' loop, step by step."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.order.hard_batches import HardBatches, hardest
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_highest_losses_in_their_own_order():
    assert hardest(torch.tensor([0.1, 3.0, 0.5, 2.0, 0.2]), 0.4).tolist() == [1, 3]
    assert hardest(torch.tensor([0.1, 3.0, 0.5]), 0.1).tolist() == [1]  # one at least
    assert hardest(torch.ones(4), 0.5).tolist() == [0, 1]


def textbook(losses, batches, share, steps):
    """Which batch each step trains on: all in turn, and then rounds on the top share by last loss."""
    last, told, order = {}, iter(losses), []
    for b in range(batches):
        last[b] = next(told)
        order.append(b)
    while len(order) < steps:
        top = sorted(sorted(last, key=lambda b: -last[b])[: int(share * batches)])
        for b in top[: steps - len(order)]:
            order.append(b)
            last[b] = next(told)
    return order[:steps]


class Fake:
    def __init__(self, data, model):
        self.data, self.model = data, model


def drawn(part, steps, n=4, rows=20, data=None):
    """The batches that the part gives, whose losses are made up."""
    data = world("digits")["data"].take(range(rows)) if data is None else data
    loop, told = Fake(data, world("digits")["model"]), np.random.default_rng(0).random(steps)
    s, fresh, seen = part.start(loop), iter(range(0, 10**6, n)), []
    for t in range(steps):
        batch = part.draw(loop, s, n, lambda n: data.batch(np.arange(n) + next(fresh) % rows))
        seen.append(batch["row"].tolist())
        part.watch(loop, s, {"loss": float(told[t])})
    return seen, told


def test_the_authors_loop():
    seen, told = drawn(HardBatches(share=0.6), 40)
    order = textbook(told, 5, 0.6, 40)
    assert seen == [list(range(4 * b, 4 * b + 4)) for b in order] and len(set(order[5:])) > 3


def test_a_pool_is_read_anew_after_its_rounds():
    seen, _ = drawn(HardBatches(share=0.5, pool=2, rounds=3), 12)
    first = [rows[0] // 4 for rows in seen]
    assert first[:2] == [0, 1] and set(first[2:5]) <= {0, 1} and first[5:7] == [2, 3] and set(first[7:10]) <= {2, 3}
    assert first[10:] == [4, 0]


def test_rows_of_others_are_not_remembered():
    data = world("digits")["data"].take(range(8))
    loop = Fake(data, world("digits")["model"])
    part = HardBatches(pool=2)
    s = part.start(loop)
    for _ in range(2):
        part.draw(loop, s, 4, lambda n: {**data.batch([1, 2, 3, 4]), "row": torch.tensor([1, 2, -1, -1])})
    assert part.draw(loop, s, 4, None)["row"].tolist() == [1, 2]


@pytest.mark.parametrize("fields", [{"share": 0.0}, {"share": 1.5}, {"pool": 1}, {"pool": 0}, {"rounds": 0}])
def test_bad_fields_are_named(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        HardBatches(**fields).start(Fake(world("digits")["data"], None))


def measure(seed: int, arm: str) -> float:
    """Test accuracy after twelve passes' worth of small batches."""
    nouns, run = world("digits", seed), Run(seed)
    parts = [HardBatches()] if arm == "method" else []
    how = {**HOW["digits"], "batch_size": 8, "lr": 3e-3}
    model = run.fit(nouns["model"], nouns["data"], *parts, epochs=5, **how)
    right = run.infer(model, nouns["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float())
    return float(right.mean())


CLAIM = Claim(
    method="hard_batches",
    world="digits",
    rival="plain training, as many steps",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
