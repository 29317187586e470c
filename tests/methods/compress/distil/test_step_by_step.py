import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.compress.distil.step_by_step import StepByStep, parsed, task_weights
from trainlore.nouns import Data
from trainlore.primitives.losses import rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama


def test_the_weighted_mean_over_tokens_is_the_authors_loss():
    """alpha times the mean over label tokens and 1 - alpha times that over rationale tokens, alpha 0.5 and others."""
    rng = np.random.default_rng(0)
    tokens, explains = rng.integers(1, 30, 9), np.arange(9) % 2 == 1
    losses, counts = [rng.random(n) for n in tokens], rng.random(9) + 0.5
    for alpha in (0.5, 0.2, 1.0):
        for weight in (np.ones(9), counts):
            got = task_weights(tokens, explains, alpha, weight)
            engine = sum(w * x.sum() for w, x in zip(got, losses, strict=True)) / (got * tokens).sum()
            side = [
                sum(weight[i] * losses[i].sum() for i in rows) / sum(weight[i] * tokens[i] for i in rows)
                for rows in (np.flatnonzero(~explains), np.flatnonzero(explains))
            ]
            assert engine == pytest.approx(alpha * side[0] + (1 - alpha) * side[1], rel=1e-5)


def test_what_was_written_is_read_as_the_authors_read_it():
    said = " Coffee keeps people awake. So the answer is (a) awake.\nQ: next So the answer is no"
    assert parsed(said, "So the answer is", "Q:") == ("Coffee keeps people awake.", "(a) awake")
    assert parsed("no end in sight", "So the answer is", "Q:") == ("", "")


def rows():
    return Data.of({"prompt": ["1+1", "2+2"], "completion": ["2", "4"], "rationale": ["one and one", ""]})


def test_every_row_becomes_two_tasks_told_apart_by_a_prefix():
    made = StepByStep(student=llama())(rows())
    assert list(made.text("prompt")) == ["predict: 1+1", "predict: 2+2", "explain: 1+1"]
    assert list(made.text("completion")) == ["2", "4", "one and one"] and made["parents"].tolist() == [0, 1, 0]
    assert list(made.text("task")) == ["predict", "predict", "explain"]
    tokens = np.diff(llama().encode(made).lists("labels")[1]) - [
        len(llama().tokenizer(p)["input_ids"]) for p in made.text("prompt")
    ]
    assert made["weight"] == pytest.approx(task_weights(tokens, np.array([False, False, True]), 0.5, np.ones(3)))
    alone = StepByStep(alpha=1.0)(rows().without("rationale").with_(weight=[1.0, 3.0], domain=["x", "y"]))
    assert len(alone) == 2 and alone["weight"].tolist() == [1, 3] and list(alone.text("domain")) == ["x", "y"]


class Writes(Run):
    def generate(self, model, prompts, *how, **more):
        self.asked = prompts
        return [" because. So the answer is two.", "I do not know"]


def test_a_writer_gives_the_reasons_and_labels_where_there_are_none():
    run = Writes(0)
    made = StepByStep(writer=llama(), shots="Q: 0+0\n", new=8)(run, rows().without("rationale"))
    assert run.asked == ["Q: 0+0\n1+1\nA:", "Q: 0+0\n2+2\nA:"]
    assert list(made.text("completion")) == ["2", "4", " because."]
    made = StepByStep(writer=llama(), new=8)(run, rows().without("rationale", "completion"))
    assert list(made.text("completion")) == [" two", " because."] and made["parents"].tolist() == [0, 0]


def test_bad_input_is_named():
    for fields, data, match in (
        ({"alpha": 0.0}, rows(), "alpha"),
        ({"explain": "predict: "}, rows(), "told apart"),
        ({"rationale": "why"}, rows(), "why"),
        ({}, rows().without("completion"), "completion"),
        ({}, rows().with_(rationale=["", " "]), "no row has a reason"),
        ({}, rows().with_(completion=["", ""]), "no row has a label"),
        ({"writer": llama(), "new": 127}, rows(), "room"),
    ):
        with pytest.raises(ValueError, match=match):
            StepByStep(**fields)(data)


def sums(n, seed):
    """Three digits to be added; the reason is what is left after the first two."""
    digits = np.random.default_rng(seed).integers(0, 10, size=(n, 3))
    return Data.of(
        {
            "prompt": ["+".join(map(str, row)) + "=" for row in digits],
            "completion": [str(row.sum()) for row in digits],
            "rationale": [f"{row[0] + row[1]}+{row[2]}" for row in digits],
        }
    )


def measure(seed, arm):
    """Nats of the answers to unseen sums; each step reads 16 labels and, with the method, about 16 reasons besides."""
    how = {"predict": "", "explain": "*", "student": llama(arithmetic=True)}
    data = StepByStep(alpha=0.5 if arm == "method" else 1.0, **how)(sums(300, seed))
    size = 32 if arm == "method" else 16
    model = Run(seed).fit(llama(seed, arithmetic=True), data, steps=60, **{**HOW["sums"], "batch_size": size})
    test = model.encode(StepByStep(alpha=1.0, **how)(sums(200, 10_000 + seed)))
    return float(Run(seed).infer(model, test, lambda b, out: rowwise("causal", b, out).sum(1)).mean())


CLAIM = Claim("step_by_step", "sums", "labels alone", "nats of unseen answers", "lower", measure)
