from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.class_generator import ClassGenerator, near_the_class
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world

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


@cache
def prior():
    return world("text")["prior"]


def test_the_filter_is_the_textbooks():
    rng = np.random.default_rng(0)
    real, made = rng.normal(1, 1, (20, 5)), rng.normal(0.5, 1, (30, 5))
    centre = real.sum(0) / 5  # the authors divide by the width: the cosine does not mind

    def cosine(x):
        return float(x @ centre / np.linalg.norm(x) / np.linalg.norm(centre))

    limit = np.quantile([cosine(x) for x in real], 0.15)
    wanted = [cosine(x) > limit for x in made]
    assert near_the_class(torch.tensor(real), torch.tensor(made), 0.15).tolist() == wanted and 0 < sum(wanted) < 30
    assert near_the_class(torch.tensor(real), torch.tensor(real), 0.15).sum() == 17


def test_new_rows_keep_the_opening_and_the_class_of_their_parents():
    data, how = texts(12, 0), {"model": prior(), "new": 6, "steps": 3, "n": 2}
    before = prior().fingerprint
    every = ClassGenerator(**how, quantile=None)(Run(0), data)
    old = list(data.text())
    assert list(every.text())[:12] == old and every["augmented"].tolist() == [0] * 12 + [1] * (len(every) - 12)
    assert 12 < len(every) <= 36 and prior().fingerprint == before
    for text, label, parent in list(zip(every.text(), every["label"], every["parents"], strict=True))[12:]:
        assert text.startswith(" ".join(old[parent].split()[:3])) and label == data["label"][parent]
    assert len(set(every.text())) == len(every)
    some = ClassGenerator(**how, quantile=0.5)(Run(0), data)
    assert 12 <= len(some) < len(every) and set(some.text()) < set(every.text())
    assert ClassGenerator(**{**how, "n": 0})(Run(0), data) is data


def test_each_class_is_tuned_alone():
    class Watched(Run):
        def fit(self, model, data, *parts, **how):
            self.rows = [*getattr(self, "rows", []), list(data.text())]
            return super().fit(model, data, *parts, **how)

    run, data = Watched(0), texts(8, 0)
    ClassGenerator(model=prior(), n=1, new=2, steps=1)(run, data)
    assert run.rows == [[t for t, y in zip(data.text(), data["label"], strict=True) if y == k] for k in (0, 1)]


def test_bad_input_is_named():
    data = texts(4, 0)
    for fields, name in (({"n": -1}, "n must"), ({"quantile": 2.0}, "quantile=2.0"), ({"label": "kind"}, "'kind'")):
        with pytest.raises(ValueError, match=name):
            ClassGenerator(model=prior(), **fields)(data)
    with pytest.raises(ValueError, match="not a classifier"):
        ClassGenerator(model=Model(Bag(8, 2), "classifier"))(data)


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), texts(20, 5000 + seed)
    if arm == "method":
        rows = ClassGenerator(model=prior(), n=3, new=24, steps=30, lr=3e-3)(run, rows)
    return accuracy(run, rows)


CLAIM = Claim(
    method="class_generator",
    world="text",
    rival="the rows alone, at the same number of steps of the classifier",
    quantity="test accuracy of a bag of words with 10 rows of each of two domains",
    better="higher",
    measure=measure,
    seeds=10,
    quick=2,
)
