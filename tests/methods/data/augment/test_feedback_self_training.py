from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.augment.feedback_self_training import FeedbackSelfTraining, bayes, others
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world

NUMBER = {word: i for i, word in enumerate(two_domains.WORDS)}


def test_every_row_meets_every_other_value():
    row, value = others(np.array([0, 2]), 3, 2)
    pairs = list(zip(row.tolist(), value.tolist()))
    assert sorted(pairs) == [(0, 1), (0, 1), (0, 2), (0, 2), (1, 0), (1, 0), (1, 1), (1, 1)]
    assert len(others(np.array([0, 1]), 2, 0)[0]) == 0


def test_naive_bayes_is_the_textbooks():
    known, which = ["good good day", "nice day", "bad day", "bad bad bad night"], np.array([0, 0, 1, 1])
    assert bayes(known, which, 2, ["good", "bad", "nice bad bad", "night day"]).tolist() == [0, 1, 1, 1]
    uneven = bayes(known[:3], which[:3], 2, ["unheard"])
    assert uneven.tolist() == [0]  # nothing known of the word: the commoner value


class Watched(Run):
    """A run that remembers what was trained on, from which weights, and writes what it is told to."""

    def fit(self, model, data, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, data)]
        return super().fit(model, data, *parts, **how)

    def generate(self, model, prompts, **how):
        self.asked = list(prompts)
        return [" sour sour", " sweet sweet", "", " sour"]


def test_what_the_judge_finds_obedient_is_added_and_nothing_else():
    rows = {"prompt": ["apple", "pear", "plum", "fig"], "completion": [" sweet", " sweet", " sour", " sour"]}
    data, run, start = Data.of({**rows, "taste": ["++", "++", "--", "--"]}), Watched(0), world("text")["model"]
    model = FeedbackSelfTraining(control="taste", steps=2, code="<{}>")(run, start, data)
    assert run.asked == ["<-->apple", "<-->pear", "<++>plum", "<++>fig"]
    (at, first), (again, second) = run.fits
    assert at == again == start.fingerprint  # the second training does not go on from the first
    assert list(first.text("prompt")) == ["<++>apple", "<++>pear", "<-->plum", "<-->fig"]
    assert list(second.text("prompt"))[4:] == ["<-->apple"] and list(second.text("completion"))[4:] == [" sour sour"]
    assert model.about["feedback_self_training"] == {"written": 4, "kept": 1}


class Tenth(torch.nn.Module):
    """A judge that finds everything to be of the last of three classes."""

    main_input_name = "input_ids"

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, attention_mask):
        return torch.tensor([0.0, 0.0, 1.0]).repeat(len(input_ids), 1) + self.w


def test_a_judge_knows_values_in_the_order_of_their_size():
    rows = {"prompt": ["a", "b", "c"], "completion": [" d", " e", " f"], "label": [2, 10, 9]}
    judge, run = Model(Tenth(), "classifier", world("text")["model"].tokenizer), Watched(0)
    run.generate = lambda model, prompts, **how: [" x"] * len(prompts)
    FeedbackSelfTraining(steps=1, judge=judge)(run, world("text")["model"], Data.of(rows))
    assert list(run.fits[1][1].text("prompt"))[3:] == ["10 a", "10 c"]


def test_texts_are_split_into_opening_and_rest():
    prompts, completions = FeedbackSelfTraining(opening=2)._split(Data.of(["a b c d", "e f g"]))
    assert prompts == ["a b", "e f"] and completions == [" c d", " g"]
    with pytest.raises(ValueError, match="opening=3"):
        FeedbackSelfTraining(opening=3)._split(Data.of(["a b c d", "e f g"]))


def test_bad_input_is_named():
    data = Data.of({"prompt": ["a", "b"], "completion": [" c", " d"], "label": [1, 1], "kind": [0, 1]})
    model = world("text")["model"]
    for fields, name in (
        ({"samples": -1}, "samples"),
        ({"code": "x"}, "code='x'"),
        ({"control": "mood"}, "'mood'"),
        ({"control": "label"}, "one value '1'"),
    ):
        with pytest.raises(ValueError, match=name):
            FeedbackSelfTraining(**fields)(model, data)


def styled(n, seed, rare):
    """Prompts of two domains with completions in the style of their own domain, but for a rare share."""
    out = {"prompt": [], "completion": [], "style": []}
    for own, other in (("a", "b"), ("b", "a")):
        told = two_domains.pairs(n // 2, 2 * seed + (own == "b"), own, other).to_pydict()
        odd = np.random.default_rng(seed).random(n // 2) < rare
        out["prompt"] += told["prompt"]
        out["completion"] += [told["rejected" if o else "chosen"][i] for i, o in enumerate(odd)]
        out["style"] += [other if o else own for o in odd]
    return Data.of(out)


def obeys(run, model, rows):
    """The share of completions likelier in the style of the code, where the prompt is of the other domain."""
    wanted = ["ab".replace(own, "") for own in rows["style"].to_pylist()]
    prompts = list(rows.text("prompt"))
    said = run.generate(model, [f"{w} {p}" for w, p in zip(wanted, prompts)], new=12, key=("obeys",))
    chains, hits = {d: np.log(two_domains._chain(d)) for d in "ab"}, []
    for style, prompt, text in zip(wanted, prompts, said):
        words = [NUMBER.get(w) for w in [prompt.split()[-1], *text.split()]]
        steps = [(a, b) for a, b in pairwise(words) if a is not None and b is not None]
        score = {d: sum(chain[a, b] for a, b in steps) for d, chain in chains.items()}
        hits.append(score[style] > score["ab".replace(style, "")])
    return float(np.mean(hits))


def measure(seed: int, arm: str) -> float:
    run, samples = Run(seed), 1 if arm == "method" else 0
    method = FeedbackSelfTraining(control="style", samples=samples, steps=60, new=12, lr=3e-3)
    model = method(run, world("text")["prior"], styled(200, 5000 + seed, 0.05))
    return obeys(run, model, styled(80, 9, 0.0))


CLAIM = Claim(
    method="feedback_self_training",
    world="text",
    rival="training on control codes alone, for as many steps as the last training",
    quantity="share of completions in the asked style where the prompt is of the other domain",
    better="higher",
    measure=measure,
    seeds=10,
    quick=1,
)
