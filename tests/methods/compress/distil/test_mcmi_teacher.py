import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.kd import KD
from trainlore.methods.compress.distil.mcmi_teacher import MCMITeacher, centroids, conditional_information
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world


def test_its_mean_is_the_conditional_information_of_the_rows():
    """I(X; Yhat | Y) = sum_y P(y) [H(mean answer of y) - mean H(answer)], by hand."""
    noise = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(30, 4, generator=noise).double() * 2, torch.randint(3, (30,), generator=noise)
    shares = logits.softmax(1)
    centre, count = centroids(shares, labels, 4)
    got = conditional_information(logits, labels, centre).mean().item()
    by_hand = 0.0
    for y in range(3):
        mine = shares[labels == y].numpy()
        entropy = [-(p * np.log(p)).sum() for p in (mine.mean(0), *mine)]
        by_hand += len(mine) / 30 * (entropy[0] - np.mean(entropy[1:]))
    assert got == pytest.approx(by_hand, rel=1e-4)
    assert count.tolist() == [*np.bincount(labels), 0] and centre[3].tolist() == [0.25] * 4


def test_rows_at_their_centre_have_none():
    shares = torch.tensor([[0.7, 0.2, 0.1]])
    assert conditional_information(shares.log(), torch.tensor([1]), shares[[0, 0]]).abs().item() < 1e-6


class Seen:
    model = Model(torch.nn.Linear(2, 3))


def test_centres_follow_after_the_step_and_only_those_of_classes_seen():
    part, centre = MCMITeacher(weight=0.5, decay=0.9), torch.full((3, 3), 1 / 3)
    s = {"centre": centre.clone(), "fresh": []}
    out, labels = torch.randn(4, 3), torch.tensor([0, 0, 2, 2])
    batch = {"labels": labels}
    for _ in range(2):  # asked twice, as by SAM, it sees the same centres both times
        got = part.loss(Seen, s, batch, out, lambda b, o: torch.ones(4))
        torch.testing.assert_close(got, 1 - 0.5 * conditional_information(out, labels, centre))
    part.watch(Seen, s, {})
    for y in (0, 2):
        torch.testing.assert_close(s["centre"][y], 0.9 * centre[y] + 0.1 * out.softmax(1)[labels == y].mean(0))
    assert torch.equal(s["centre"][1], centre[1]) and not s["fresh"]


def test_first_centres_are_of_all_rows():
    nouns = world("digits")
    found = {}

    class Look(Part):
        def start(self, loop):
            found.update(MCMITeacher().start(loop))
            return {}

    Run(0).fit(nouns["teacher"], nouns["data"], Look(), steps=1, **HOW["digits"])
    teacher = world("digits")["teacher"]
    shares = Run(0).infer(teacher, nouns["data"], lambda b, o: o.softmax(1)).numpy()
    for y in range(10):
        mine = shares[nouns["data"]["label"] == y].mean(0)
        assert np.allclose(found["centre"][y], mine, atol=1e-5)


def test_bad_fields_are_named():
    nouns = world("digits")
    for field, value in (("weight", -1.0), ("decay", 1.5)):
        with pytest.raises(ValueError, match=field):
            Run(0).fit(nouns["model"], nouns["data"], MCMITeacher(**{field: value}), steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match="classifiers"):
        MCMITeacher().start(type("Loop", (), {"model": Model(torch.nn.Linear(2, 3), "causal")}))


def tuned(seed, arm):
    """The world's teacher after some more epochs on its own rows, with the part or plainly."""
    parts = [MCMITeacher()] if arm == "method" else []
    nouns = world("digits", seed)
    return Run(seed).fit(nouns["teacher"], nouns["data"], *parts, steps=60, **{**HOW["digits"], "lr": 3e-3})


def measure(seed, arm):
    """Test accuracy of a student of the tuned teacher that has a tenth of the teacher's rows."""
    nouns, run = world("digits", seed), Run(seed)
    rows = nouns["data"].take(run.numpy("few").permutation(400)[:40])
    part = KD(teacher=tuned(seed, arm))
    student = run.fit(nouns["model"], rows, part, steps=100, **HOW["digits"])
    logits = run.infer(student, nouns["test"], lambda batch, out: out)
    return float((logits.argmax(1).numpy() == nouns["test"]["label"]).mean())


CLAIM = Claim("mcmi_teacher", "digits", "plain fine-tuning of the teacher", "student's accuracy", "higher", measure)
