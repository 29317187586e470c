from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.passage_questions import PassageQuestions
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world
from trainlore.worlds.two_domains import WORDS


def rows():
    return Data.of({"passage": ["bada glea gloe", "nara"], "prompt": ["bada", "nara nora"]})


class Writes(Run):
    """A run that is told what is written."""

    def __init__(self, *said):
        super().__init__(0)
        self.said, self.asked = list(said), []

    def generate(self, model, prompts, *how, **more):
        self.asked.append(prompts)
        return self.said.pop(0)


def test_questions_are_asked_after_the_passage_and_answered_once_each():
    run = Writes([" who?\nmore", "who?", " ", "where? "], ["me", " there "])
    made = PassageQuestions(writer=llama(), questions=2, new=4)(run, Data.of({"passage": ["bada", "nara"]}))
    assert run.asked[0] == ["bada\n\nQuestion: "] * 2 + ["nara\n\nQuestion: "] * 2
    assert run.asked[1] == ["bada\n\nQuestion: who?\nAnswer:", "nara\n\nQuestion: where?\nAnswer:"]
    assert list(made.text("completion")) == [" me", " there"] and made["parents"].tolist() == [0, 1]
    assert list(made.text("prompt"))[0] == "Question: who?\nAnswer:"
    given = PassageQuestions(writer=llama(), new=4)(Writes(["x", ""]), rows())
    assert list(given.text("prompt")) == ["bada"] and list(given.text("completion")) == [" x"]
    for fields, data, match in (
        ({"questions": 0}, rows(), "questions"),
        ({"new": 126}, rows(), "room"),
        ({}, Data.of({"text": ["a"]}), "passage"),
        ({"new": 4}, rows(), "no answer"),
    ):
        with pytest.raises(ValueError, match=match):
            PassageQuestions(writer=llama(), **fields)(Writes(["", ""]), data)


@cache
def lessons(passage):
    """Questions of one word each; answers by a model that has a passage of domain b in view, or an empty one."""
    nouns = world("text")
    told = [t for t, d in zip(nouns["data"].text(), nouns["data"]["domain"].to_pylist(), strict=True) if d == "b"]
    told = [" ".join(t.split()[:10]) for t in told if len(t.split()) >= 10][:100]
    asked = [WORDS[i] for i in np.random.default_rng(0).integers(len(WORDS), size=100)]
    data = Data.of({"passage": told if passage else [""] * 100, "prompt": asked})
    writer = PassageQuestions(writer=nouns["teacher"], temperature=0.7, new=16, between=" ")
    return writer(Run(7), data), nouns["teacher"]


@torch.no_grad()
def agreement(student, base, test):
    """Share of the answers' tokens for which the student says without the passage what the base says with it."""
    said = []
    for model, between in ((student, None), (base, " ")):
        asked = list(test.text("prompt"))
        if between is not None:
            asked = [c + between + q for c, q in zip(test.text("passage"), asked, strict=True)]
        rows = model.encode(Data.of({"prompt": asked, "completion": list(test.text("completion"))}))
        batch = rows.batch(range(len(rows)), model)
        said.append(model(batch)[:, :-1].argmax(-1)[batch["labels"][:, 1:] != -100])
    return float((said[0] == said[1]).float().mean())


def measure(seed, arm):
    """The student is tuned on answers that were given with the passage in view, or on answers given without."""
    data, base = lessons(arm == "method")
    mine = data.take(np.random.default_rng(seed).permutation(60)[:40])
    student = Run(seed).fit(base.copy(), mine, steps=30, **{**HOW["text"], "lr": 1e-3})
    test, _ = lessons(True)
    return agreement(student, base, test.take(range(60, len(test))))


CLAIM = Claim(
    "passage_questions", "passages", "answers without passage", "share of tokens as with passage", "higher", measure
)
