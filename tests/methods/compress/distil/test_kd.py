import math

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.kd import KD
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


class Seen:
    """What a part sees of a loop, and no more."""

    def __init__(self, kind="classifier"):
        self.model, self.device = Model(torch.nn.Linear(2, 3), kind), torch.device("cpu")


def test_loss_is_the_papers_sum():
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    net = torch.nn.Module()
    net.forward = lambda x: teacher
    part = KD(teacher=Model(net), alpha=0.7, temperature=2.0)
    got = part.loss(
        Seen(),
        {},
        {"features": torch.zeros(4, 2), "labels": torch.zeros(4)},
        student,
        lambda b, o: torch.full((4,), 5.0),
    )
    for i in range(4):
        p, q = ([math.exp(x / 2) for x in row[i].tolist()] for row in (teacher, student))
        p, q = ([x / sum(v) for x in v] for v in (p, q))
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert got[i].item() == pytest.approx(0.3 * 5 + 0.7 * 4 * kl, rel=1e-5)


def test_high_temperature_matches_the_logits_themselves():
    """The paper: T^2 KL nears half the squared distance of the centred logits, over their number, as T grows."""
    student, teacher = torch.randn(5, 10).double(), torch.randn(5, 10).double()
    net = torch.nn.Module()
    net.forward = lambda x: teacher
    part = KD(teacher=Model(net), alpha=1.0, temperature=1000.0)
    got = part.loss(
        Seen(), {}, {"features": torch.zeros(5, 2), "labels": torch.zeros(5)}, student, lambda b, o: torch.zeros(5)
    )
    gap = teacher - teacher.mean(1, keepdim=True) - student + student.mean(1, keepdim=True)
    torch.testing.assert_close(got, gap.square().sum(1) / 20, rtol=1e-2, atol=0)


def test_the_teacher_must_speak_the_same_classes():
    nouns = world("digits")
    odd = Model(torch.nn.Linear(64, 7))
    with pytest.raises(ValueError, match="teacher answers"):
        Run(0).fit(nouns["model"], nouns["data"], KD(teacher=odd), steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match="regressor"):
        KD(teacher=odd).start(Seen("regressor"))
    with pytest.raises(ValueError, match="alpha"):
        Run(0).fit(nouns["model"], nouns["data"], KD(teacher=nouns["teacher"], alpha=1.5), steps=1, **HOW["digits"])


def test_only_trained_tokens_are_matched():
    labels = torch.tensor([[-100, -100, 4, 5]])
    net = torch.nn.Module()
    net.forward = lambda **given: torch.randn(1, 4, 3)
    net.main_input_name = "input_ids"
    part = KD(teacher=Model(net, "causal"), alpha=1.0)
    got = part.loss(
        Seen("causal"),
        {},
        {"input_ids": labels, "labels": labels},
        torch.randn(1, 4, 3),
        lambda b, o: torch.zeros(1, 3),
    )
    assert got.shape == (1, 3) and got[0, 0] == 0 and (got[0, 1:] > 0).all()


def measure(seed, arm):
    """Test accuracy of a small student that has few rows; the teacher saw all 400."""
    nouns = world("digits", seed)
    parts = [KD(teacher=nouns["teacher"])] if arm == "method" else []
    run = Run(seed)
    student = run.fit(nouns["model"], nouns["data"].take(range(60)), *parts, steps=100, **HOW["digits"])
    logits = run.infer(student, nouns["test"], lambda batch, out: out)
    return (logits.argmax(1).numpy() == nouns["test"]["label"]).mean()


CLAIM = Claim("kd", "digits", "hard-label student", "test accuracy", "higher", measure)
