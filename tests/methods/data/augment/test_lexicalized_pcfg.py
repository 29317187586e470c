from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.lexicalized_pcfg import LexicalizedPCFG
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains

DOMAINS = ("a", "b", "c", "d")
TREES = [
    "(S (NP (DT the) (NN cat)) (VP (VBZ sees) (NP (DT a) (JJ red) (NN ball))))",
    "(S (NP (DT the) (NN dog)) (VP (VBZ sees) (NP (DT the) (NN ball))))",
    "(S (NP (DT a) (JJ old) (NN dog)) (VP (VBZ sleeps)))",
]


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


def plain(tree):
    return " ".join(w for w in tree.replace("(", " ( ").replace(")", " ").split() if w.islower())


def parsed():
    return Data.of({"text": [plain(t) for t in TREES], "parse": TREES, "label": [0, 0, 1]})


def test_sentences_are_recombined_within_a_class():
    out = LexicalizedPCFG(parses="parse", n=30, smooth=0.0)(parsed())
    new = set(list(out.text())[3:])
    assert new == {
        "the cat sees the ball",
        "the dog sees a red ball",
    }  # only "ball" and "sees" are heads of two phrases
    wide = LexicalizedPCFG(parses="parse", n=60, smooth=5.0, label=None)(parsed())
    assert len(wide) > len(out) and any("old" in t and "sees" in t for t in list(wide.text())[3:])
    assert set(out["label"][3:]) == {0} and set(out["parents"][3:]) <= {0, 1}
    assert LexicalizedPCFG(n=0)(Run(0), data := parsed()) is data and len(set(wide.text())) == len(wide)


def test_without_parses_it_is_a_bigram_model():
    data = Data.of({"text": ["a b c", "a c", "b a b d"], "label": [0, 0, 0]})
    out = LexicalizedPCFG(n=50, smooth=0.0)(data)
    seen = {(x, y) for t in data.text() for x, y in zip(t.split(), t.split()[1:])}
    new = list(out.text())[3:]
    assert new and all((x, y) in seen for t in new for x, y in zip(t.split(), t.split()[1:]))
    assert {t.split()[-1] for t in new} <= {"c", "d"}


def test_bad_input_is_named():
    for fields, name in (({"n": -1}, "n=-1"), ({"longest": 0}, "longest=0"), ({"parses": "tree"}, "'tree'")):
        with pytest.raises(ValueError, match=name):
            LexicalizedPCFG(**fields)(parsed())


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), texts(40, 5000 + seed)
    return accuracy(run, LexicalizedPCFG()(run, rows) if arm == "method" else rows)


CLAIM = Claim(
    method="lexicalized_pcfg",
    world="text",
    rival="the rows alone, at the same number of steps",
    quantity="test accuracy of a bag of words with 10 rows of each of four domains",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
