import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.ps_kd import PSKD, blend
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_the_share_of_the_past_grows_as_in_the_authors_code():
    """alpha_T (epoch + 1) / epochs: with 0.8 over 300 epochs it starts at 0.8 / 300 and ends at 0.8."""
    assert blend(0.8, 0, 300) == pytest.approx(0.8 / 300) and blend(0.8, 149, 300) == pytest.approx(0.4)
    assert blend(0.8, 299, 300) == blend(0.8, 400, 300) == 0.8


class Loop:
    def __init__(self, rows=4, size=2, steps=8):
        self.model, self.data, self.size, self.steps, self.t = Model(torch.nn.Linear(2, 3)), range(rows), size, steps, 0

    @property
    def done(self):
        return self.t / self.steps


def test_targets_are_the_authors_over_four_epochs():
    """A loop by hand over an (N, K) table of past answers, written after each batch, against the part's loss."""
    loop, part = Loop(), PSKD(alpha=0.8)
    s, labels = part.start(loop), torch.tensor([0, 2, 1, 1])
    table, noise = torch.eye(3)[labels], torch.Generator().manual_seed(0)
    for epoch in range(4):
        for rows in (torch.tensor([3, 0]), torch.tensor([1, 2])):
            out, y = torch.randn(2, 3, generator=noise), torch.eye(3)[labels[rows]]
            share = 0.8 * (epoch + 1) / 4
            target = (1 - share) * y + share * table[rows]
            by_hand = -(target * out.log_softmax(1)).sum(1)
            batch = {"row": rows, "labels": labels[rows]}
            for _ in range(2):  # asked twice, as by SAM, it must see the same past
                got = part.loss(
                    loop,
                    s,
                    batch,
                    out,
                    lambda b, o: torch.nn.functional.cross_entropy(o, b["labels"], reduction="none"),
                )
                torch.testing.assert_close(got, by_hand)
            table[rows] = out.softmax(1)
            loop.t += 1
            part.watch(loop, s, {})
    torch.testing.assert_close(s["answers"], table)


@pytest.mark.parametrize("memory", ["rows", "weights"])
def test_the_past_is_gone_on_with(memory, tmp_path):
    """Stopped in the third of six epochs and gone on with: the same bits."""
    how = {**HOW["digits"], "steps": 24, "batch_size": 16}
    rows, part = world("digits")["data"].take(range(64)), PSKD(memory=memory)
    run = Run(0)
    whole = run.fit(world("digits")["model"], rows, part, **how)
    for until in (9, None):
        part_way = Run(0).fit(world("digits")["model"], rows, part, until=until, folder=tmp_path, **how)
    assert part_way.fingerprint == whole.fingerprint
    assert run.effects[-1]["did"]["loss"] > 0.01
    assert Run(0).fit(world("digits")["model"], rows, **how).fingerprint != whole.fingerprint


def test_last_epochs_weights_answer_where_answers_cannot_be_kept():
    nouns = world("text")
    rows = nouns["data"].take(range(16))
    part, run = PSKD(alpha=0.5), Run(0)
    run.fit(nouns["model"], rows, part, steps=6, **HOW["text"])
    assert run.effects[-1]["did"]["loss"] > 1e-4 and not run.effects[-1]["dead"]
    one_epoch = Run(0)
    one_epoch.fit(world("text")["model"], rows, part, steps=2, **HOW["text"])
    assert one_epoch.effects[-1]["did"]["loss"] == 0  # nothing is softened in the first epoch
    with pytest.raises(ValueError, match="memory"):
        Run(0).fit(world("text")["model"], rows, PSKD(memory="rows"), steps=1, **HOW["text"])
    with pytest.raises(ValueError, match="memory"):
        Run(0).fit(world("text")["model"], rows, PSKD(memory="table"), steps=1, **HOW["text"])


def measure(seed, arm):
    """Mean negative log probability of the true class on test rows, after training to overfitting."""
    nouns, run = world("digits", seed), Run(seed)
    parts = [PSKD()] if arm == "method" else []
    model = run.fit(nouns["model"], nouns["data"].take(range(200)), *parts, steps=200, **HOW["digits"])
    logits = run.infer(model, nouns["test"], lambda batch, out: out).log_softmax(1).numpy()
    return float(-logits[np.arange(len(logits)), nouns["test"]["label"]].mean())


CLAIM = Claim("ps_kd", "digits", "hard labels", "test nats a row", "lower", measure)
