from functools import cache

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.meal_v2 import MEALV2, told_apart
from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.trees import load_tree
from trainlore.worlds.tiny import HOW, world


class Seen:
    """What a part sees of a loop, and no more."""

    def __init__(self, kind="classifier"):
        self.model, self.device = Model(torch.nn.Linear(2, 3), kind), torch.device("cpu")


def saying(logits):
    net = torch.nn.Module()
    net.forward = lambda x: logits
    return Model(net)


def test_target_is_the_mean_of_the_probabilities_not_of_the_logits():
    student, teachers = torch.randn(4, 3), [torch.randn(4, 3) * 3 for _ in range(3)]
    part = MEALV2(teachers=tuple(map(saying, teachers)), adversary=0.0)
    batch = {"features": torch.zeros(4, 2)}  # no labels: none are asked for
    got = part.loss(Seen(), {}, batch, student, lambda b, o: pytest.fail("the labels' loss was asked for"))
    for i in range(4):
        mean = sum(t[i].softmax(0) for t in teachers) / 3
        assert got[i].item() == pytest.approx(-(mean * student[i].log_softmax(0)).sum().item(), rel=1e-5)
    half = MEALV2(teachers=part.teachers, adversary=0.0, alpha=0.5)
    torch.testing.assert_close(half.loss(Seen(), {}, batch, student, lambda b, o: torch.ones(4)), (1 + got) / 2)


def test_the_critic_learns_and_the_student_works_against_it():
    student, teachers = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3)
    critic = torch.nn.Linear(3, 1)
    plain = torch.cat([critic(student), critic(teachers)])[:, 0]
    bce = torch.nn.functional.binary_cross_entropy_with_logits(plain, torch.tensor([0.0] * 5 + [1.0] * 5))
    values = told_apart(critic, student, teachers, 0.3)
    assert values.shape == (5,) and values.mean().item() == pytest.approx(bce.item(), rel=1e-5)
    mine = torch.autograd.grad(bce, [student, critic.weight], retain_graph=True)
    turned = torch.autograd.grad(values.mean(), [student, critic.weight])
    torch.testing.assert_close(turned[0], -0.3 * mine[0])
    torch.testing.assert_close(turned[1], mine[1])
    helped = torch.autograd.grad(told_apart(critic, student, teachers, -1.0).mean(), student)[0]
    torch.testing.assert_close(helped, mine[0])  # the authors' code


def test_the_critic_is_trained_and_goes_with_the_run(tmp_path):
    kept = []
    for until in (1, 4):
        nouns = world("digits")
        part = MEALV2(teachers=tuple(nouns["proxies"]))
        Run(0).fit(nouns["model"], nouns["data"], part, steps=9, until=until, folder=tmp_path, **HOW["digits"])
        kept.append(load_tree(max(tmp_path.glob("step-*")))["parts"][0]["critic"])
    assert kept[0].keys() == kept[1].keys() and all(not torch.equal(kept[0][k], kept[1][k]) for k in kept[0])


def test_rows_without_labels_teach_as_well():
    nouns, run = world("digits"), Run(0)
    part = MEALV2(teachers=tuple(nouns["proxies"]))
    assert "label" not in nouns["spare"].columns
    run.fit(nouns["model"], nouns["spare"], part, steps=2, **HOW["digits"])
    assert run.effects[-1]["did"]["loss"] > 0


def test_language_models_average_their_teachers_too():
    nouns = world("text")
    part, run = MEALV2(teachers=(nouns["teacher"], nouns["prior"])), Run(0)
    run.fit(nouns["model"], nouns["data"].take(range(16)), part, steps=2, **HOW["text"])
    assert run.effects[-1]["did"]["loss"] > 0 and not run.effects[-1]["dead"]


def test_bad_fields_are_named():
    nouns = world("digits")
    fine = {"teachers": (nouns["teacher"],)}
    odd = (Model(torch.nn.Linear(64, 7)),)
    for fields, said in (({"teachers": ()}, "teachers"), ({"alpha": 2.0}, "alpha"), ({"teachers": odd}, "a teacher")):
        with pytest.raises(ValueError, match=said):
            part = MEALV2(**{**fine, "adversary": 0.0, **fields})
            Run(0).fit(nouns["model"], nouns["data"], part, steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match="regressor"):
        MEALV2(**fine).start(Seen("regressor"))


@cache
def ensemble():
    """Three wider networks trained on all 400 rows."""
    data = world("digits")["data"]
    return tuple(Run(s).fit(preset("mlp", seed=s, width=64), data, steps=100, **HOW["digits"]) for s in (41, 42, 43))


@cache
def begun(seed):
    """The student as the recipe wants it: already trained on its labels."""
    nouns = world("digits", seed)
    return Run(seed).fit(nouns["model"], nouns["data"].take(range(100)), steps=80, **HOW["digits"])


def measure(seed, arm):
    """Test accuracy after going on from trained weights at a tenth of the learning rate."""
    nouns, run = world("digits", seed), Run(seed)
    parts = [MEALV2(teachers=ensemble())] if arm == "method" else []
    how = {**HOW["digits"], "lr": 1e-3}
    student = run.fit(begun(seed).copy(), nouns["data"].take(range(100)), *parts, steps=100, **how)
    logits = run.infer(student, nouns["test"], lambda batch, out: out)
    return float((logits.argmax(1).numpy() == nouns["test"]["label"]).mean())


CLAIM = Claim("meal_v2", "digits", "going on with hard labels", "test accuracy", "higher", measure)
