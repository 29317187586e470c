from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.synthesize.unigen import UniGen, shares
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world

HOW = {"label": "domain", "prompt": "{}:", "close": "", "new": 24, "margin": 0.2}
CLASSES = {"domain": ["b", "a"]}


class Bag(torch.nn.Module):
    """Classifies a text by the mean of its tokens' embeddings."""

    main_input_name = "input_ids"

    def __init__(self, tokens, classes):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(tokens, 32), torch.nn.Linear(32, classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


class Told(Run):
    """A run whose writer writes what it is told to."""

    def generate(self, model, prompts, **how):
        self.asked = list(prompts)
        return [self.says[i % len(self.says)] for i in range(len(prompts))]


def told(*says):
    run = Told(0)
    run.says = says
    return run


def test_soft_labels_are_the_textbooks_and_the_authors_for_two_classes():
    losses = torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wanted = [[np.exp(-a / 0.1) / sum(np.exp(-b / 0.1) for b in row) for a in row] for row in losses.tolist()]
    assert np.allclose(shares(losses, 0.1), wanted)
    two = losses[:, :2]
    assert torch.allclose(shares(two, 0.1), 1 - (two / 0.1).softmax(-1))


def test_what_the_writer_itself_is_sure_of_is_kept():
    model, run = world("text")["prior"], told(" bada gile", " komi nare pasa", "")
    made = UniGen(model=model, **{**HOW, "margin": 0.0}, n=3, relabel=0.5)(run, Data.of(CLASSES))
    assert run.asked == ["a:"] * 3 + ["b:"] * 3  # names in sorted order
    for text, name, p, parent in zip(
        made.text(), made["domain"].to_pylist(), made["labels"], made["parents"], strict=True
    ):
        loss = []
        for start in ("a:", "b:"):
            ids = torch.tensor([[*model.tokenizer(f"{start} {text}")["input_ids"], model.tokenizer.eos_token_id]])
            with torch.no_grad():
                said = model.net(ids).logits[0, :-1].log_softmax(-1)
            loss.append(float(-said[torch.arange(ids.shape[1] - 1), ids[0, 1:]].mean()))
        assert np.allclose(p, torch.tensor(loss).div(-0.5).softmax(0), atol=1e-4)
        assert name == "ab"[int(p.argmax())] and parent == CLASSES["domain"].index(name)
    assert set(made.text()) == {"bada gile", "komi nare pasa"}  # each is likelier under one of the two


def test_a_text_ends_where_it_says():
    assert UniGen(model=world("text")["prior"])._cut('good" and\nmore') == "good"
    assert UniGen(model=world("text")["prior"], close="")._cut('good" and\nmore') == 'good" and'


def test_bad_input_is_named():
    model, data = world("text")["prior"], Data.of(CLASSES)
    for fields, name in (
        ({"n": 0}, "n and new"),
        ({"prompt": "x"}, "prompt='x'"),
        ({"label": "mood"}, "'mood'"),
        ({"margin": 0.5}, "margin=0.5"),
    ):
        with pytest.raises(ValueError, match=name):
            UniGen(**{"model": model, **HOW, "n": 2, **fields})(told("bada"), data)
    with pytest.raises(ValueError, match="one value 'a'"):
        UniGen(model=model, **HOW)(Data.of({"domain": ["a"]}))
    with pytest.raises(ValueError, match="not a classifier"):
        UniGen(model=Model(Bag(8, 2), "classifier"), **HOW)(data)


@cache
def writer():
    """A model that has read texts under the names of their domains, one in four of them the wrong name."""
    table = two_domains.make(300, 77)
    wrong = np.random.default_rng(0).random(300) < 0.25
    said = [{"a": "b", "b": "a"}[d] if w else d for d, w in zip(table["domain"].to_pylist(), wrong)]
    rows = Data.of([f"{d}: {t}" for d, t in zip(said, table["text"].to_pylist())])
    return Run(5).fit(world("text")["teacher"], rows, steps=250, batch_size=8, lr=3e-3, precision="fp32")


def measure(seed: int, arm: str) -> float:
    run, how = Run(seed), {**HOW, "n": 60}
    if arm == "method":
        rows = UniGen(model=writer(), **how)(run, Data.of(CLASSES))
    else:
        texts = run.generate(writer(), ["a:"] * 60 + ["b:"] * 60, new=24, top_k=40, key=("unigen",))
        rows = Data.of({"text": texts, "label": np.repeat([0, 1], 60)}).where([bool(t.strip()) for t in texts])
    tokenizer = two_domains.tokenizer()
    with run.global_rng("net"):
        model = Model(Bag(len(tokenizer), 2), "classifier", tokenizer)
    run.fit(model, rows, steps=100, batch_size=32, lr=1e-2, precision="fp32")
    test = two_domains.make(400, 2)
    test = Data(test).with_(label=np.array(["ab".index(d) for d in test["domain"].to_pylist()]))
    return Accuracy()(run, model, test).value


CLAIM = Claim(
    method="unigen",
    world="text",
    rival="all texts as they were asked for, with the class in their prompt for a label",
    quantity="test accuracy of a bag of words trained on 60 texts written for each of two classes",
    better="higher",
    measure=measure,
    seeds=10,
    quick=2,
)
