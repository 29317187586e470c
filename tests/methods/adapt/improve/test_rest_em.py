import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.adapt.improve.rest_em import ReSTEM, first_correct
from trainlore.methods.measure.evaluate.exact_match import ExactMatch
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.sums import correct
from trainlore.worlds.tiny import HOW, world


def test_the_first_few_right_answers_of_each_prompt_are_kept():
    rng = np.random.default_rng(0)
    prompts, right = rng.integers(0, 9, 200), rng.random(200) < 0.6
    by_hand, seen = [], {}
    for i in range(200):
        if right[i] and seen.setdefault(prompts[i], 0) < 4:
            seen[prompts[i]] += 1
            by_hand.append(i)
    assert first_correct(prompts, right, 4).tolist() == by_hand
    assert len(first_correct(prompts, right & False, 4)) == 0


def test_the_authors_numbers_are_the_defaults():
    part = ReSTEM()
    assert (part.samples, part.keep, part.temperature, part.top_k) == (32, 10, 0.7, 40)


class Watched(Run):
    """A run whose writing is told and whose fittings are written down."""

    def __init__(self, written):
        super().__init__(0)
        self.written, self.fits, self.writers = list(written), [], []

    def generate(self, model, prompts, **how):
        self.writers.append(model.fingerprint)
        return self.written.pop(0)(prompts)

    def fit(self, model, data, *parts, **how):
        self.fits.append((model.fingerprint, data))
        return super().fit(model, data, *parts, **how)


def test_every_round_tunes_the_first_model_on_what_the_last_one_got_right():
    nouns = world("sums")
    data, base = Data.of({"prompt": ["1+1=", "2+2=", "3+3="], "completion": ["2", "4", "6"]}), nouns["model"]
    run = Watched([lambda p: [" 2", "9", "2", "4", "9", "9", "9", "9", "9"], lambda p: ["9"] * 6 + ["6", "9", "9"]])
    out = ReSTEM(samples=3, rounds=2, new=2, steps=2, lr=1e-2, keep=1)(run, base, data)
    assert [f for f, _ in run.fits] == [base.fingerprint] * 2  # never the last round's
    assert run.writers[0] == base.fingerprint != run.writers[1]
    first, second = (d for _, d in run.fits)
    assert list(first.text("completion")) == ["2", "4"] and first["parents"].tolist() == [0, 1]
    assert list(second.text("prompt")) == ["3+3="] and out.fingerprint not in (base.fingerprint, run.writers[1])


def test_held_out_prompts_choose_the_round_and_no_right_answer_ends_it():
    nouns = world("sums")
    data = Data.of({"prompt": ["1+1=", "2+2="], "completion": ["2", "4"]})
    right, half, wrong = (
        lambda p: ["2" if q == "1+1=" else "4" for q in p],
        lambda p: ["2", "9"],
        lambda p: ["9"] * len(p),
    )
    run = Watched(
        [right, right, half, wrong]
    )  # written, judged right, written, judged wrong: the first round is better
    out = ReSTEM(samples=1, rounds=2, new=2, steps=2, lr=1e-2, held_out=data)(run, nouns["model"], data)
    assert out.fingerprint == run.writers[1] == run.writers[2] != run.writers[3]
    same = ReSTEM(samples=1, rounds=2, new=2)(Watched([wrong]), nouns["model"], data)
    assert same.fingerprint == nouns["model"].fingerprint and same is not nouns["model"]


def test_bad_fields_and_missing_columns_are_named():
    nouns = world("sums")
    with pytest.raises(ValueError, match="samples"):
        ReSTEM(samples=0)(nouns["model"], nouns["data"])
    with pytest.raises(ValueError, match="completion"):
        ReSTEM()(nouns["model"], nouns["data"].without("completion"))


def measure(seed, arm):
    """Share of unseen sums done after one round on the model's own answers: the right ones, or (rival) all of them."""
    nouns, run = world("sums", seed), Run(seed)
    base = run.fit(nouns["model"], nouns["data"], steps=60, **HOW["sums"])
    check = correct if arm == "method" else lambda prompts, answers: np.ones(len(answers), bool)
    tuned = run.step(
        ReSTEM(correct=check, rounds=1, samples=4, new=3, steps=40, lr=1e-3), base, nouns["data"].take(range(100))
    )
    return run.step(ExactMatch(), tuned, nouns["test"]).value


CLAIM = Claim("rest_em", "sums", "tuning on all own answers", "share of unseen sums done", "higher", measure)
