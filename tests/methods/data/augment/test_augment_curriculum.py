from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.augment_curriculum import AugmentCurriculum, cycle, phase, subset
from trainlore.methods.data.augment.eda import EDA
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains

DOMAINS = ("a", "b", "c", "d")


class Bag(torch.nn.Module):
    """Classifies a text by the mean of its tokens' embeddings."""

    main_input_name = "input_ids"

    def __init__(self, tokens, classes):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(tokens, 32), torch.nn.Linear(32, classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


def texts(n, seed, domains=DOMAINS):
    table = two_domains.make(n, seed, domains)
    return Data(table).with_(label=np.array([domains.index(d) for d in table["domain"].to_pylist()]))


def bag(run):
    tokenizer = two_domains.tokenizer()
    with run.global_rng("net"):
        return Model(Bag(len(tokenizer), len(DOMAINS)), "classifier", tokenizer)


def accuracy(run, rows, *parts, batch_size=32):
    model = bag(run)
    run.fit(model, rows, *parts, steps=100, batch_size=batch_size, lr=1e-2, precision="fp32")
    return Accuracy()(run, model, texts(400, 2)).value


def authors_sizes(narrow, end, factor, total):
    """The sizes as a plain loop goes through them, until they add up to `total` epochs."""
    sizes, up = [narrow], True
    while sum(sizes) < total:
        if sizes[-1] == narrow:
            up = True
        elif sizes[-1] == end:
            up = False
        sizes.append(min(sizes[-1] / factor, end) if up else max(sizes[-1] * factor, narrow))
    return sizes


@pytest.mark.parametrize("narrow", [0.25, 0.1, 0.3])
def test_the_cycle_is_the_textbooks(narrow):
    mine = cycle(narrow, 1.0, 0.5)
    wanted = authors_sizes(narrow, 1.0, 0.5, 12)
    assert wanted == pytest.approx([mine[i % len(mine)] for i in range(len(wanted))])
    assert cycle(0.25, 1.0, 0.5) == [0.25, 0.5, 1.0, 0.5] and cycle(1.0, 1.0, 0.5) == [1.0]
    lengths = np.array([2, 3, 5])
    assert [phase(t, lengths) for t in range(12)] == [0, 0, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3]


def test_late_rows_wait_and_easy_ones_are_likelier():
    late = torch.tensor([True] * 80 + [False] * 20)
    some = subset(late, torch.zeros(100, dtype=torch.float64), 0.1, torch.Generator().manual_seed(0))
    assert some.sum() == 10 and not some[late].any()
    more = subset(late, torch.zeros(100, dtype=torch.float64), 0.5, torch.Generator().manual_seed(0))
    assert more.sum() == 50 and more[~late].all()
    ease = torch.tensor([np.log(3.0), 0.0], dtype=torch.float64)  # losses 1/3 and 1: three to one
    first = [
        subset(torch.zeros(2, dtype=torch.bool), ease, 0.5, torch.Generator().manual_seed(s))[0].item()
        for s in range(800)
    ]
    assert np.mean(first) == pytest.approx(0.75, abs=0.05)


class Watched(AugmentCurriculum):
    """Remembers what was drawn in each step."""

    seen: list = []

    def watch(self, loop, s, record):
        type(self).seen.append(set(np.asarray(loop.data["augmented"])[loop.batch["row"]].tolist()))


def test_the_first_phase_is_the_real_rows_alone():
    rows = EDA(n_aug=3)(texts(32, 0))  # 32 real of 128: narrow 0.25
    for first, wanted in (("real", {0}), ("augmented", {1}), ("any", {0, 1})):
        Watched.seen = []
        Run(0).fit(bag(Run(0)), rows, Watched(first=first, narrow=0.25), steps=36, batch_size=8, precision="fp32")
        assert Watched.seen[0] <= wanted and set().union(*Watched.seen[:4]) == wanted
        assert set().union(*Watched.seen) == {0, 1}


def test_bad_input_is_named():
    rows = EDA(n_aug=1)(texts(8, 0)).with_(loss=np.zeros(16))
    for fields, name in (
        ({"factor": 1.0}, "factor=1.0"),
        ({"narrow": 0.0}, "narrow=0.0"),
        ({"first": "hard"}, "first='hard'"),
        ({"column": "none"}, "'none'"),
        ({"column": "domain"}, "'domain' holds no numbers"),
        ({"first": "any"}, "needs narrow"),
        ({"difficulty": "loss"}, "'loss' must be above 0"),
    ):
        with pytest.raises(ValueError, match=name):
            accuracy(Run(0), rows, AugmentCurriculum(**fields))


def measure(seed: int, arm: str) -> float:
    run = Run(seed)
    parts = [AugmentCurriculum()] if arm == "method" else []
    return accuracy(run, EDA()(run, texts(40, 5000 + seed)), *parts, batch_size=16)


CLAIM = Claim(
    method="augment_curriculum",
    world="text",
    rival="the same real and augmented rows, shuffled",
    quantity="test accuracy of a bag of words with 10 rows of each of four domains and 9 edited copies of each",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
