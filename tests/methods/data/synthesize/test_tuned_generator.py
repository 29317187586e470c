from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.synthesize.tuned_generator import TunedGenerator
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world

GOLD = Data.of({"text": ["bada beda", "gala gela", "bide bode"], "label": [3, 7, 3]})
FOUND = Data.of({"text": ["bodi bade", "gala gela", "gole gali", "gole gali", ""]})


@cache
def prior():
    return world("text")["prior"]


class Watched(Run):
    """A run that remembers what was trained on and asked, and writes what it is told to."""

    def fit(self, model, data, *parts, **how):
        self.rows = [*getattr(self, "rows", []), list(zip(data.text("prompt"), data.text("completion")))]
        return super().fit(model, data, *parts, **how)

    def generate(self, model, prompts, *how):
        self.asked = list(prompts)
        return [f" new {i} " for i in range(len(prompts))]


def test_the_teacher_learns_both_ways_and_new_texts_are_added_once():
    run, how = Watched(0), {"ask": "[{}]", "write": "<{}>", "steps": 2}
    got = TunedGenerator(model=prior(), unlabelled=FOUND, n=2, **how)(run, GOLD)
    classes = [("[bada beda]", " 3"), ("[gala gela]", " 7"), ("[bide bode]", " 3")]
    assert run.rows == [classes, [("<3>", " bada beda"), ("<7>", " gala gela"), ("<3>", " bide bode")]]
    assert run.asked == ["<3>", "<7>", "<3>"] * 2
    assert list(got.text()) == [*GOLD.text(), "bodi bade", "gole gali", *(f"new {i}" for i in range(6))]
    assert got["source"].to_pylist() == ["gold"] * 3 + ["annotated"] * 2 + ["written"] * 6
    assert got["label"][:3].tolist() == [3, 7, 3] and set(got["label"].tolist()) == {3, 7}
    assert got["parents"].to_pylist() == [[0], [1], [2], *[[]] * 8]
    found = TunedGenerator(model=prior(), unlabelled=FOUND, n=0, **how)(Run(0), GOLD)
    assert list(found.text()) == list(got.text())[:5]


def test_shares_are_the_textbooks_and_unsure_rows_go():
    run, model, names = Run(0), prior(), [" a", " b b", " c"]
    method, texts = TunedGenerator(model=model, ask="{} is"), ["bada", "gela gola"]
    got, wanted = method._shares(run, model, texts, names), []
    for text in texts:
        score = []
        for name in names:
            asked, said = (model.tokenizer(t)["input_ids"] for t in (f"{text} is", name))
            ids = asked + said + [model.tokenizer.eos_token_id]
            with torch.no_grad():
                log = model.net(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
            score.append(sum(log[t - 1, ids[t]].item() for t in range(len(asked), len(ids))))
        wanted.append(np.exp(score) / np.exp(score).sum())
    assert got == pytest.approx(np.array(wanted), abs=1e-4)
    how = {"model": model, "unlabelled": FOUND, "n": 0, "steps": 2}
    every = TunedGenerator(**how)(Run(0), GOLD)
    limit = float(every["sure"][3:].max())
    some = TunedGenerator(**how, sure=limit)(Run(0), GOLD)
    assert len(some) == 4 and some["sure"][3] == limit and every["sure"][3:].min() >= 0.5
    assert len(TunedGenerator(**how, sure=1.0)(Run(0), GOLD)) == 3


def test_bad_input_is_named():
    for fields, name in (
        ({"n": -1}, "n=-1"),
        ({"n": 0}, "nothing to add"),
        ({"sure": 2.0}, "sure=2.0"),
        ({"ask": "?"}, "ask='\\?'"),
        ({"label": "mood"}, "'mood'"),
    ):
        with pytest.raises(ValueError, match=name):
            TunedGenerator(model=prior(), **fields)(Run(0), GOLD)
    with pytest.raises(ValueError, match="one value .3"):
        TunedGenerator(model=prior())(Run(0), GOLD.take([0, 2]))


class Bag(torch.nn.Module):
    """Classifies a text by the mean of its tokens' embeddings."""

    main_input_name = "input_ids"

    def __init__(self, tokens, classes):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(tokens, 32), torch.nn.Linear(32, classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


def texts(n, seed):
    """The first twelve words of texts of two domains."""
    table = two_domains.make(n, seed)
    short = [" ".join(t.split()[:12]) for t in table["text"].to_pylist()]
    return Data.of({"text": short, "label": ["ab".index(d) for d in table["domain"].to_pylist()]})


def measure(seed: int, arm: str) -> float:
    run, rows, tokenizer = Run(seed), texts(20, 5000 + seed), two_domains.tokenizer()
    if arm == "method":
        how = {"steps": 150, "lr": 1e-3, "batch_size": 16}
        rows = TunedGenerator(model=prior(), unlabelled=texts(200, 6000 + seed), n=0, **how)(run, rows)
    with run.global_rng("net"):
        student = Model(Bag(len(tokenizer), 2), "classifier", tokenizer)
    run.fit(student, rows, steps=100, batch_size=32, lr=1e-2, precision="fp32")
    return Accuracy()(run, student, texts(400, 2)).value


CLAIM = Claim(
    method="tuned_generator",
    world="text",
    rival="the labelled rows alone, at the same number of steps of the student",
    quantity="test accuracy of a bag of words with 10 labelled rows of each of two domains and 200 the teacher labels",
    better="higher",
    measure=measure,
    seeds=10,
    quick=1,
)
