import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.kd import KD
from trainlore.methods.compress.distil.teacher_routing import TeacherRouting
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


def test_each_row_is_taught_by_its_own_teacher():
    nouns = world("text")
    data, kind = nouns["data"].take(range(6)), "causal"
    part = TeacherRouting(general=nouns["prior"], expert=nouns["expert_b"], domains=("b",), alpha=0.7, temperature=2.0)
    loop = type("Loop", (), {"model": nouns["model"], "data": data, "device": torch.device("cpu")})()
    batch = data.batch([4, 0, 3, 1], nouns["model"])
    with torch.no_grad():
        out, hard = nouns["model"](batch), rowwise(kind, batch, nouns["model"](batch))
        got = part.loss(loop, part.start(loop), batch, out, lambda b, o: hard)
        for i, row in enumerate([4, 0, 3, 1]):
            teacher = nouns["expert_b"] if data["domain"][row].as_py() == "b" else nouns["prior"]
            said = teacher(batch)[i]
            for t in range(batch["labels"].shape[1] - 1):
                p, q = (said[t] / 2).softmax(0), (out[i, t] / 2).softmax(0)
                wanted = 0.3 * hard[i, t] + 0.7 * 4 * (p * (p.log() - q.log())).sum()
                trained = batch["labels"][i, t + 1] != -100
                assert got[i, t].item() == pytest.approx(wanted.item() if trained else 0.0, abs=1e-4)


def test_one_teacher_for_all_is_plain_distillation():
    nouns = world("text")
    both = TeacherRouting(general=nouns["prior"], expert=nouns["prior"], domains=("a",))
    found = [
        Run(0).fit(llama(), nouns["data"], part, steps=3, **HOW["text"])
        for part in (both, KD(teacher=nouns["prior"], alpha=1.0, temperature=1.0))
    ]
    for a, b in zip(found[0].net.parameters(), found[1].net.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-3)


def test_bad_input_is_named():
    nouns = world("text")
    good = {"general": nouns["prior"], "expert": nouns["expert_b"], "domains": ("b",)}
    for bad, match in (
        ({"domains": ("c",)}, "domains: no row is of c"),
        ({"domains": ()}, "name the expert's"),
        ({"by": "source"}, "source"),
        ({"alpha": 1.5}, "alpha"),
        ({"temperature": 0.0}, "temperature"),
        ({"expert": world("sums")["model"]}, "vocabulary"),
    ):
        with pytest.raises(ValueError, match=match):
            Run(0).fit(nouns["model"], nouns["data"], TeacherRouting(**{**good, **bad}), steps=1, **HOW["text"])


def measure(seed, arm):
    """Held-out nats a token on the expert's domain: taught by general teacher and expert, or by the general one alone."""
    nouns, run = world("text", seed), Run(seed)
    expert = nouns["expert_b"] if arm == "method" else nouns["prior"]
    part = TeacherRouting(general=nouns["prior"], expert=expert, domains=("b",))
    student = run.fit(nouns["model"], nouns["data"], part, steps=40, **HOW["text"])
    test = nouns["held_out"].where([d == "b" for d in nouns["held_out"]["domain"].to_pylist()])
    return float(run.infer(student, test, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean())


CLAIM = Claim("teacher_routing", "text", "the general teacher alone", "nats a token of the domain", "lower", measure)
