from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.lora import LoRA
from trainlore.methods.compress.distil.passage_questions import PassageQuestions
from trainlore.methods.compress.distil.prompt_distillation import (
    PromptDistillation,
    answers_apart,
    without_adapters,
)
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world
from trainlore.worlds.two_domains import WORDS

HOW_ = {**HOW["text"], "lr": 1e-3}


def test_answers_are_matched_place_by_place_after_different_prompts():
    g = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, generator=g), torch.randn(2, 7, 5, generator=g)
    mine = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    theirs = torch.tensor([[0, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 0]]).bool()
    got = answers_apart(student, mine, teacher, theirs, 2.0)
    for row, here, there in ((0, 1, 3), (0, 2, 4), (1, 3, 5)):
        p, q = (teacher[row, there] / 2).softmax(0), (student[row, here] / 2).softmax(0)
        assert got[row, here].item() == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-4)
    assert (got[~mine] == 0).all()


def rows():
    return Data.of(
        {
            "passage": ["bada glea gloe", "nara"],
            "prompt": ["bada", "nara nora"],
            "completion": [" glea gloe tave", " nora"],
        }
    )


class Looked(PromptDistillation):
    """Keeps the losses it gave."""

    seen = []

    def loss(self, loop, s, batch, out, inner):
        self.seen.append((batch, super().loss(loop, s, batch, out, inner).detach()))
        return self.seen[-1][1] * 0 + out.sum() * 0


@pytest.mark.parametrize("adapted", [False, True])
def test_the_teacher_is_the_model_at_the_start_with_the_passage_in_view(adapted):
    base, data = llama(3), rows()
    model = Run(0).step(LoRA(rank=2), base.copy()) if adapted else base.copy()
    if adapted:
        with torch.no_grad():
            [p.normal_(std=0.3) for n, p in model.net.named_parameters() if "lora_B" in n]
    Looked.seen.clear()
    Run(0).fit(model, data, Looked(temperature=1.0), steps=1, **{**HOW_, "batch_size": 2})
    batch, got = Looked.seen[0]
    for i, row in enumerate(batch["row"].tolist()):
        passage, prompt, answer = (list(data.text(c))[row] for c in ("passage", "prompt", "completion"))
        tok = base.tokenizer
        ids = [tok(t, add_special_tokens=False)["input_ids"] for t in (passage + "\n\n" + prompt, prompt, answer)]
        ids[2].append(tok.eos_token_id)
        with torch.no_grad():
            told = base.net(input_ids=torch.tensor([ids[0] + ids[2]])).logits[0, len(ids[0]) - 1 : -1].log_softmax(-1)
            mine = model.net(input_ids=torch.tensor([ids[1] + ids[2]])).logits[0, len(ids[1]) - 1 : -1].log_softmax(-1)
        want = (told.exp() * (told - mine)).sum(-1)
        at = len(ids[1]) - 1
        torch.testing.assert_close(got[i, at : at + len(want)], want, atol=1e-4, rtol=1e-3)
        assert got[i].count_nonzero() == len(want)


def test_adapters_are_put_back_as_they_were():
    model = Run(0).step(LoRA(rank=2), llama())
    before = {n: p.requires_grad for n, p in model.net.named_parameters()}
    with torch.no_grad():
        [p.normal_() for n, p in model.net.named_parameters() if "lora_B" in n]
    batch = world("text")["data"].batch([0], model)
    with without_adapters(model.net) as found, torch.no_grad():
        off = model(batch)
    with torch.no_grad():
        assert found and not torch.allclose(off, model(batch))
        torch.testing.assert_close(off, llama()(batch))
    assert {n: p.requires_grad for n, p in model.net.named_parameters()} == before


def test_bad_rows_and_fields_are_named():
    data = rows()
    for changed, fields, match in (
        (data.without("passage"), {}, "passage"),
        (data, {"temperature": 0.0}, "temperature"),
        (data, {"alpha": 2.0}, "alpha"),
        (data.with_(passage=["bada " * 200, "b"]), {}, "window"),
        (data, {"teacher": world("sums")["model"]}, "vocabulary"),
    ):
        with pytest.raises(ValueError, match=match):
            Run(0).fit(llama(), changed, PromptDistillation(**fields), steps=1, **{**HOW_, "batch_size": 2})


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
    data, base = lessons(True)
    mine = data.take(np.random.default_rng(seed).permutation(60)[:40])
    parts = [PromptDistillation(between=" ")] if arm == "method" else []
    student = Run(seed).fit(base.copy(), mine, *parts, steps=30, **HOW_)
    return agreement(student, base, data.take(range(60, len(data))))


CLAIM = Claim(
    "prompt_distillation",
    "passages",
    "tuning on the same answers",
    "share of tokens as with passage",
    "higher",
    measure,
)
