from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.codeact import CodeACT, turns
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import sums, two_domains
from trainlore.worlds.tiny import HOW, llama


@cache
def base():
    """A model that has learned a little of sums of one digit."""
    model = llama(0, arithmetic=True)
    return Run(0).fit(model, model.encode(Data(sums.make(200, seed=5, digits=1))), steps=40, **HOW["sums"])


def test_turns_take_the_hardest_of_each_cluster_alike():
    cluster = np.array([0, 0, 1, 1, 1, 1])
    turn = turns(cluster, np.array([0.2, 0.9, 0.1, -np.inf, 0.5, 0.3]))
    assert turn.tolist() == pytest.approx([0.75, 0.25, 5 / 6, np.inf, 1 / 6, 0.5])


def test_difficulty_is_the_ratio_of_perplexities():
    data = Data(sums.make(30, seed=1, digits=1))
    out = CodeACT(model=base(), keep=0.1, clusters=2)(data).whole()
    tok = base().tokenizer
    for row, (q, a) in enumerate(zip(data.text("prompt"), data.text("completion"), strict=True)):
        answer = [*tok(a, add_special_tokens=False)["input_ids"], tok.eos_token_id]
        loss = []
        for before in ([tok.bos_token_id], tok(q, add_special_tokens=False)["input_ids"]):
            logits = base().net(input_ids=torch.tensor([before + answer])).logits[0, len(before) - 1 : -1].detach()
            loss.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item())
        assert out["codeact"][row] == pytest.approx(np.exp(loss[1] - loss[0]), rel=1e-4)


def test_the_hardest_below_one_are_kept():
    data = Data(sums.make(60, seed=1, digits=1))
    answers = data["completion"].to_pylist()
    data = data.with_(completion=answers[:30] + answers[40:] + answers[30:40])  # half do not belong to their questions
    out = CodeACT(model=base(), keep=0.2, clusters=1)(data)
    score = out.whole()["codeact"]
    below = np.where(score < 1, score, -np.inf)
    assert out.ids.tolist() == sorted(np.argsort(-below, kind="stable")[:12].tolist())
    assert (score >= 1).any() and (out["codeact"] < 1).all()
    with pytest.raises(ValueError, match="keep=1.0 asks for 60 of 60 rows and only"):
        CodeACT(model=base(), keep=1.0, clusters=1)(data)
    words = CodeACT(model=base(), tokens=0.2, clusters=3)(data)
    assert sum(len((q + a).split()) + 1 for q, a in zip(words.text("prompt"), words.text("completion"))) <= 25


def test_bad_input_is_named():
    data = Data(sums.make(5, seed=1, digits=1))
    for fields, source, said in (
        ({"clusters": 6}, data, "clusters=6"),
        ({}, data.without("prompt"), "'prompt'"),
        ({}, data.take([]), "no rows"),
    ):
        with pytest.raises(ValueError, match=said):
            CodeACT(model=base(), **fields)(source)


@cache
def asked(n, seed):
    """Prompts and how they go on, encoded."""
    rows = two_domains.pairs(n, seed=seed)
    return llama().encode(Data.of({"prompt": rows["prompt"].to_pylist(), "completion": rows["chosen"].to_pylist()}))


@cache
def reader():
    return Run(31).fit(llama(31), llama().encode(Data(two_domains.make(300, seed=0))), steps=60, **HOW["text"])


def measure(seed: int, arm: str) -> float:
    """Held-out loss of the answers after tuning on two fifths of the rows."""
    run, pool = Run(seed), asked(300, seed)
    kept = (CodeACT(model=reader()) if arm == "method" else RandomRows(keep=0.4))(run, pool)
    tuned = run.fit(reader().copy(), kept, steps=40, **HOW["text"])
    return float(run.infer(tuned, asked(100, 10**6), lambda b, o: per_row(rowwise("causal", b, o), b, "causal")).mean())


CLAIM = Claim(
    method="codeact",
    world="text",
    rival="random_rows",
    quantity="held-out loss of the answers after tuning on 40% of the rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
