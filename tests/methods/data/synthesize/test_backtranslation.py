from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.synthesize.backtranslation import Backtranslation, ratings
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import llama, world

SEED = Data.of({"prompt": ["1*4=", "2*7="], "completion": ["4", "77"]})
POOL = Data.of(["333", "91", "5", "68"])
HOW = {"steps": 30, "lr": 3e-3, "batch_size": 16}
PLAIN = {"pool": POOL, "rubric": None, "tags": ("{}", "-{}"), "back": "{}+", "steps": 2, "new": 4}


class Watched(Run):
    """A run that remembers what was trained on and asked, and says what it is told to."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), list(zip(data.text("prompt"), data.text("completion")))]
        return super().fit(model, data, *parts, **how)

    def generate(self, model, prompts, *rest, **how):
        self.asked = [*getattr(self, "asked", []), list(prompts)]
        return self.said[len(self.asked) - 1]


def watched(*said):
    run = Watched(0)
    run.said = said
    return run


def test_the_last_score_counts():
    assert ratings(["Score: 4", "score: 2, no. Score: 4.5"]).tolist() == [4, 4.5]
    assert np.isnan(ratings(["good", "Score: high"])).all()
    assert Backtranslation.keep == round(41_821 / 502_133, 2)  # what passed in the paper


def test_models_are_trained_on_the_seed_turned_round_then_on_what_passed():
    run = watched(["3*3=", " ", "1*5=", "9*9="], ["Score: 5"] * 2 + ["Score: 4"], ["Score: 5", "?", "Score: 4.5"])
    method = Backtranslation(model=llama(arithmetic=True), **{**PLAIN, "rubric": "{completion} {prompt}"})
    got = method(run, SEED)
    seed = [("1*4=", "4"), ("2*7=", "77")]
    assert run.asked[0] == ["333+", "91+", "5+", "68+"]
    assert run.asked[1] == run.asked[2] == ["333 3*3=", "5 1*5=", "68 9*9="]  # what asked nothing is no pair
    assert run.fits == [[("4+", "1*4="), ("77+", "2*7=")], seed, [*seed, ("-3*3=", "333"), ("-1*5=", "5")]]
    assert list(got.text("prompt")) == ["1*4=", "2*7=", "-3*3=", "-9*9="]
    assert list(got.text("completion")) == ["4", "77", "333", "68"]
    assert got["source"].to_pylist() == ["seed", "seed", "pool", "pool"] and got["origin"].tolist() == [-1, -1, 0, 3]
    assert got["score"][2:].tolist() == [5, 4.5] and got["parents"].to_pylist() == [[0], [1], [], []]


def test_without_a_rubric_the_score_is_the_mean_likelihood_of_the_answer():
    run, model = watched(["3*3=", "9+1=", "1*5=", "9*9="]), llama(1, arithmetic=True)
    method = Backtranslation(model=model, **PLAIN, keep=0.5, rounds=1)
    judge, answers = run.fit(model.copy(), SEED, steps=2, lr=1e-4, batch_size=32), list(POOL.text())
    asked, wanted = run.said[0], []
    for x, y in zip(asked, answers):
        ids = model.tokenizer(x + y)["input_ids"] + [model.tokenizer.eos_token_id]
        with torch.no_grad():
            log = judge.net(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        wanted.append(np.mean([log[t - 1, ids[t]].item() for t in range(len(x), len(ids))]))
    assert method._scores(run, judge, asked, answers, 0) == pytest.approx(wanted, abs=1e-5)
    got = method(run, SEED)
    best = sorted(np.argsort(wanted)[-2:].tolist())
    assert got["origin"].tolist() == [-1, -1, *best] and got["score"][2:] == pytest.approx(
        np.array(wanted)[best], abs=1e-3
    )
    every = Backtranslation(model=model, **PLAIN, rounds=0)(watched(asked), SEED)
    assert len(every) == 6 and np.isnan(every["score"]).all()


def test_bad_input_is_named():
    start = llama(arithmetic=True)
    for fields, data, name in (
        ({"keep": 0.0}, SEED, "keep"),
        ({"back": "x"}, SEED, "back='x'"),
        ({"output": "body"}, SEED, "'body'"),
        ({}, POOL, "'prompt'"),
        ({"pool": POOL.take([])}, SEED, "no rows"),
    ):
        with pytest.raises(ValueError, match=name):
            Backtranslation(model=start, **{**PLAIN, **fields})(Run(0), data)
    with pytest.raises(ValueError, match="raise steps=2"):
        Backtranslation(model=start, **PLAIN)(watched([""] * 4), SEED)
    with pytest.raises(ValueError, match="least=4.5"):
        Backtranslation(model=start, **{**PLAIN, "rubric": "{prompt}"})(watched(["1="] * 4, [""] * 4), SEED)


def rows_of(run, start, seed, **fields):
    """40 seed pairs of domain b and what the method adds to them: three in ten of the pool are of the other domain."""
    known, found = two_domains.pairs(40, seed), two_domains.pairs(150, seed + 1)
    pool = Data.of(found["chosen"].to_pylist()[:105] + found["rejected"].to_pylist()[105:])
    if not fields["rounds"]:
        pool = pool.take(run.numpy("half").permutation(150)[:75])
    forms = {"rubric": None, "tags": ("{}", "{}"), "back": "{}", "new": 16, "keep": 0.5}
    method = Backtranslation(model=start, pool=pool, **forms, **fields)
    return method(run, Data.of({"prompt": known["prompt"], "completion": known["chosen"]}))


def test_curation_drops_what_does_not_speak_like_the_seed():
    rows = rows_of(Run(0), world("text")["prior"], 1, rounds=1, **HOW)
    assert 70 <= len(rows) - 40 <= 75 and (rows["origin"][40:] >= 105).mean() < 0.2


def measure(seed: int, arm: str) -> float:
    run, start = Run(seed), world("text")["prior"]
    rows = rows_of(run, start, 3 * (5000 + seed), rounds=int(arm == "method"), **HOW)
    model = run.fit(start.copy(), rows, **HOW, precision="fp32")
    judged = two_domains.pairs(100, 3 * (5000 + seed) + 2)
    judged = Data.of({"prompt": judged["prompt"], "completion": judged["chosen"]})
    return float(
        run.infer(model, judged, lambda batch, out: per_row(rowwise("causal", batch, out), batch, "causal")).mean()
    )


CLAIM = Claim(
    method="backtranslation",
    world="pairs",
    rival="as many pairs without curation",
    quantity="held-out loss of completions in the seed's style, where three tenths of the pool are of another",
    better="lower",
    measure=measure,
    seeds=16,
    quick=1,
)
