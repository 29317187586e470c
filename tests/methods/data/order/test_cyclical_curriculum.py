"""Cyclical curriculum: sizes that go up and down, and who is in the subsets."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.order.cyclical_curriculum import CyclicalCurriculum, cycle, sampled
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_authors_sizes():
    assert cycle(0.25, 1.0, 0.5, 9) == [0.25, 0.5, 1, 0.5, 0.25, 0.5, 1, 0.5, 0.25]
    assert cycle(0.3, 0.9, 0.5, 6) == pytest.approx([0.3, 0.6, 0.9, 0.45, 0.3, 0.6])
    assert cycle(0.5, 0.5, 0.5, 3) == [0.5, 0.5, 0.5]


def test_subsets_are_drawn_by_their_scores_without_replacement():
    scores = torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])
    drawn = [sampled(scores, 2, Run(0).rng("x", i)).tolist() for i in range(4000)]
    assert all(len(set(d)) == 2 for d in drawn)
    first = np.bincount([d[0] for d in drawn], minlength=5) / 4000
    assert first == pytest.approx([0.5, 0.25, 0.125, 0.0625, 0.0625], abs=0.03)
    after = [d[1] for d in drawn if d[0] == 0]  # the second by the scores of those left
    assert np.mean([a == 1 for a in after]) == pytest.approx(0.5, abs=0.05)


class Fake:
    def __init__(self, data):
        self.data, self.run = data, Run(0)

    def rng(self, *key):
        return self.run.rng(*key)


def rounds(part, data, steps, n=4):
    """The rows drawn by steps of n, each step its likeliest rows."""
    loop, seen = Fake(data), []
    s = part.start(loop)
    for _ in range(steps):
        odds = part.odds(loop, s)
        rows = odds.topk(n).indices
        part.batch(loop, s, {"row": rows})
        seen.append((s["round"], rows.tolist()))
    return seen


def test_a_round_is_one_pass_over_its_subset():
    data = world("digits")["data"].take(range(40)).with_(loss=np.linspace(0.1, 4, 40))
    part = CyclicalCurriculum(by="loss")
    seen = rounds(part, data, 2 + 4 + 8 + 4, n=5)
    s = part.start(Fake(data))
    for r, size in enumerate((10, 20, 40, 20)):
        rows = [i for q, drawn in seen if q == r for i in drawn]
        assert len(rows) == size and sorted(rows) == torch.nonzero(part._round(Fake(data), s, r)).flatten().tolist()


def test_easy_and_hard_rows():
    data = world("digits")["data"].take(range(400)).with_(loss=np.linspace(0.01, 4, 400))
    easy, hard = (
        np.mean([i for _, rows in rounds(CyclicalCurriculum(by="loss", order=o), data, 5, 20) for i in rows])
        for o in ("easy", "hard")
    )
    assert easy < 150 < 230 < hard
    nouns = world("digits")
    loop, part = Fake(nouns["data"]), CyclicalCurriculum(scorer=nouns["teacher"])
    loss = -torch.log_softmax(nouns["teacher"].net(torch.from_numpy(np.array(nouns["data"]["features"]))), -1)
    loss = loss[torch.arange(400), torch.from_numpy(np.array(nouns["data"]["label"]))].detach()
    assert torch.allclose(part.start(loop)["scores"], 1 / loss.double().clamp(min=1e-8), rtol=1e-2)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"begin": 0.0}, "begin"),
        ({"begin": 0.5, "end": 0.4}, "begin"),
        ({"factor": 1.0}, "factor"),
        ({"by": None}, "scorer"),
        ({"by": "nothing"}, "nothing"),
        ({"by": "bad"}, "finite"),
    ],
)
def test_bad_fields_are_named(fields, why):
    data = world("digits")["data"].take(range(4)).with_(loss=np.ones(4), bad=np.array([1.0, -1.0, 1.0, np.nan]))
    with pytest.raises(ValueError, match=why):
        CyclicalCurriculum(**{"by": "loss", **fields}).start(Fake(data))


def measure(seed: int, arm: str) -> float:
    """Test accuracy after as many steps, the rows scored by another trained network or all alike."""
    nouns, run = world("digits", seed), Run(seed)
    parts = [CyclicalCurriculum(scorer=nouns["teacher"])] if arm == "method" else []
    model = run.fit(nouns["model"], nouns["data"], *parts, epochs=8, **HOW["digits"])
    return float(run.infer(model, nouns["test"], lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="cyclical_curriculum",
    world="digits",
    rival="all rows in every pass, as many steps",
    quantity="test accuracy",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
