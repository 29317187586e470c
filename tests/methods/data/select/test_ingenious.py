from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from trainlore.checks import make
from trainlore.claims import Claim
from trainlore.methods.data.order.rs2 import RS2
from trainlore.methods.data.select.ingenious import Ingenious, draw, gains_within, taylor_softmax
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds import data, two_domains
from trainlore.worlds.tiny import HOW, llama, world


def test_taylor_softmax_is_the_authors():
    g = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    assert taylor_softmax(g).tolist() == pytest.approx([1 / 12, 2.5 / 12, 8.5 / 12])
    assert taylor_softmax(g, 2.0).tolist() == pytest.approx([1 / 6.25, 1.625 / 6.25, 3.625 / 6.25])


def test_gains_are_those_of_the_greedy_in_each_block():
    x = torch.randn(24, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    block = np.arange(24) % 2
    gains = gains_within(x, block, "exact", torch.Generator())
    for b in range(2):
        unit = torch.nn.functional.normalize(x[block == b], dim=1)
        similar, left, covered, want = unit @ unit.T, list(range(12)), torch.zeros(12, dtype=torch.float64), {}
        while left:
            more = {j: round(float((similar[:, j] - covered).clamp(min=0).sum()), 9) for j in left}
            j = max(left, key=lambda j: more[j])
            want[j], covered = more[j], torch.maximum(covered, similar[:, j])
            left.remove(j)
        assert gains[block == b].tolist() == pytest.approx([want[j] for j in range(12)], abs=1e-9)


def test_draws_keep_each_blocks_share_and_follow_the_odds():
    gains, block = torch.tensor([0.0, 1.0, 3.0, 0.0, 1.0, 3.0], dtype=torch.float64), np.array([0, 0, 0, 1, 1, 1])
    drawn = torch.stack([draw(gains, block, 2, 1.0, torch.Generator().manual_seed(s)) for s in range(2000)])
    assert (drawn.sum(1) == 2).all() and (drawn[:, :3].sum(1) == 1).all()
    assert np.allclose(drawn.float().mean(0), [1 / 12, 2.5 / 12, 8.5 / 12] * 2, atol=0.035)


@dataclass(frozen=True, kw_only=True)
class Log(Part):
    """What was drawn at each step."""

    seen: list

    def batch(self, loop, s, batch):
        self.seen.append(batch["row"].tolist())
        return batch


def test_training_stays_in_one_subset_between_draws():
    rows, log = data("digits/train").take(range(100)), Log(seen=[])
    part = Ingenious(keep=0.32, warm=0.2, every=0.4, rescore=1, block=50)
    Run(0).fit(preset("mlp", seed=0, width=8), rows, part, log, steps=20, **{**HOW["digits"], "batch_size": 16})
    first, second = (set(sum(log.seen[a:b], [])) for a, b in ((4, 12), (12, 20)))
    assert len(set(sum(log.seen[:4], []))) == 64 and len(first) == len(second) == 32 and first != second
    for at in (4, 6, 8):
        assert len(set(log.seen[at] + log.seen[at + 1])) == 32  # each pass sees all of it


def test_rows_of_others_are_nobodys():
    s = {"left": torch.ones(4, dtype=torch.bool)}
    Ingenious().batch(None, s, {"row": torch.tensor([1, -1])})
    assert s["left"].tolist() == [True, False, True, True]


def test_layers_and_bad_fields():
    model, how = llama(0), {**HOW["text"], "steps": 2}
    few = model.encode(Data(two_domains.make(40, seed=0)))
    Run(0).fit(model.copy(), few, Ingenious(warm=0.0, layer=-1), **how)
    broken = model.copy()
    next(broken.net.parameters()).data[:] = float("nan")
    with pytest.raises(ValueError, match="ingenious: the model's embeddings of the rows are not finite"):
        Run(0).fit(broken, few, Ingenious(warm=0.0), **how)
    pairs = world("pairs")  # which a part such as `dpo` trains on
    with pytest.raises(
        ValueError, match="the model reads 'input_ids'.*pairs of a chosen and a rejected answer: give one"
    ):
        Run(0).fit(pairs["model"], pairs["data"], Ingenious(warm=0.0), make("dpo", pairs), **how)
    for fields, said in (
        ({"keep": 0.05}, "less than a batch of 8"),
        ({"keep": 0.0}, "keep=0.0"),
        ({"warm": 1.0}, "warm < 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"block": 1}, "block=1"),
        ({"warm": 0.0, "layer": 2}, "layer=2"),
    ):
        with pytest.raises(ValueError, match=said):
            Run(0).fit(model.copy(), few, Ingenious(**fields), **how)


def measure(seed: int, arm: str) -> float:
    """Held-out loss after training on a quarter of the rows at a time, of which six in ten are copies."""
    run, model = Run(seed), llama(seed)
    rows = model.encode(Data(two_domains.make(300, seed=seed, duplicates=0.6)))
    part = Ingenious(keep=0.25, warm=0.1, every=0.1) if arm == "method" else RS2(keep=0.25)
    model = run.fit(model, rows, part, steps=60, **HOW["text"])
    unseen = model.encode(Data(two_domains.make(60, seed=2)))
    losses = run.infer(model, unseen, lambda b, o: per_row(rowwise("causal", b, o), b, "causal"))
    return float(losses.mean())


CLAIM = Claim(
    method="ingenious",
    world="text",
    rival="rs2, random subsets of the same size",
    quantity="held-out loss after training on rows of which 60% are copies",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
