from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.eda import EDA
from trainlore.methods.data.augment.riff import RIFF
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import llama

DOMAINS = ("a", "b")


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


def accuracy(run, rows, *parts, domains=DOMAINS, batch_size=32):
    tokenizer = two_domains.tokenizer()
    with run.global_rng("net"):
        model = Model(Bag(len(tokenizer), len(domains)), "classifier", tokenizer)
    run.fit(model, rows, *parts, steps=100, batch_size=batch_size, lr=1e-2, precision="fp32")
    return Accuracy()(run, model, texts(400, 2, domains)).value


def few(n, seed):
    """Rows cut to their first eight words."""
    rows = texts(n, seed)
    return rows.with_(text=[" ".join(t.split()[:8]) for t in rows.text()])


@cache
def paraphraser():
    rows = few(400, 77)
    both = list(EDA(n_aug=1)(Run(0), rows).text())
    pairs = Data.of({"prompt": [t + "\n" for t in both[:400]], "completion": both[400:]})
    return Run(0).fit(llama(5), pairs, steps=60, batch_size=16, lr=5e-3, precision="fp32")


def task(run):
    tokenizer = two_domains.tokenizer()
    with run.global_rng("net"):
        return Model(Bag(len(tokenizer), 2), "classifier", tokenizer)


class Watched(Run):
    """A run that remembers what was trained on."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model, data)]
        return super().fit(model, data, *parts, **how)


def test_rows_and_their_rephrasings_weigh_alike_and_the_given_paraphraser_stays():
    run, rows = Watched(0), few(6, 0)
    before = paraphraser().fingerprint
    RIFF(paraphraser=paraphraser(), samples=2, new=8, paraphraser_steps=1, paraphraser_lr=1e-3, steps=2)(
        run, task(run), rows
    )
    (writer, _), (_, taught) = run.fits
    assert paraphraser().fingerprint == before != writer.fingerprint
    assert list(taught.text())[:6] == list(rows.text()) and np.array_equal(
        taught["label"][6:], np.repeat(rows["label"], 2)
    )
    assert taught["weight"].tolist() == [0.5] * 6 + [0.25] * 12


def test_bad_input_is_named():
    for fields, name in (
        ({"samples": 1}, "samples=1"),
        ({"ask": "x"}, "ask='x'"),
        ({"label": "kind"}, "'kind'"),
        ({"beta": -1.0}, "beta=-1"),
    ):
        with pytest.raises(ValueError, match=name):
            RIFF(paraphraser=paraphraser(), **fields)(task(Run(0)), few(4, 0))
    with pytest.raises(ValueError, match="causal paraphraser"):
        RIFF(paraphraser=task(Run(0)))(task(Run(0)), few(4, 0))
    broken = [paraphraser().copy(), task(Run(0))]
    for model in broken:
        next(model.net.parameters()).data[0, 0] = float("nan")
    for ours, theirs, whose in ((task(Run(0)), broken[0], "paraphraser"), (broken[1], paraphraser(), "task.s model")):
        with pytest.raises(ValueError, match=f"riff: the {whose} has weights that are not finite"):
            RIFF(paraphraser=theirs, paraphraser_steps=0)(ours, few(4, 0))


def test_of_a_very_long_text_no_more_is_read_than_the_windows_hold():
    run, rows, long = Watched(0), few(2, 0), "kamu gale nera " * 200_000
    rows = rows.with_(text=[long, next(rows.take([1]).text())])
    RIFF(paraphraser=paraphraser(), samples=2, new=4, paraphraser_steps=1, steps=1, ask="{} again\n")(
        run, paraphraser().copy(), rows
    )
    assert all(
        max(map(len, data.text(c))) <= 64 * 128 for _, data in run.fits for c in ("text", "prompt") if c in data.columns
    )


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), few(20, 5000 + seed)
    model = run.fit(
        task(run), rows, steps=40, batch_size=8, lr=1e-2, precision="fp32"
    )  # what says what a rephrasing is worth
    how = {"steps": 60, "batch_size": 8, "lr": 1e-2}
    if arm == "method":
        riff = RIFF(paraphraser=paraphraser(), samples=4, new=24, paraphraser_steps=5, paraphraser_lr=1e-4, **how)
        model = riff(run, model, rows)
    else:
        run.fit(model, rows, **how)
    return Accuracy()(run, model, few(400, 2)).value


CLAIM = Claim(
    method="riff",
    world="text",
    rival="training on for the same number of steps on the rows alone",
    quantity="test accuracy of a bag of words with 10 rows of eight words of each of two domains",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
