import pytest
import torch

from trainlore.claims import Claim
from trainlore.meter import Meter
from trainlore.methods.compress.distil.margin_mse import MarginMSE
from trainlore.methods.compress.distil.teacher_margins import TeacherMargins
from trainlore.primitives.ranking import layer_scores, triples
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


def test_the_teachers_mean_is_kept_with_each_row():
    data, teachers = world("pairs")["data"].take([7, 2, 9]), (llama(4), llama(5))
    kept = TeacherMargins(teachers=teachers, into="said")(data)
    assert kept.ids.tolist() == [7, 2, 9] and list(kept.text("chosen")) == list(data.text("chosen"))
    want = []
    for teacher in teachers:
        with torch.no_grad():
            scores = layer_scores(teacher, *triples(data, torch.arange(3)))[-1]
        want.append(scores[range(3), range(3)] - scores[range(3), range(3, 6)])
    torch.testing.assert_close(torch.tensor(kept["said"]), sum(want) / 2, rtol=1e-4, atol=1e-5)


def test_bad_input_is_named():
    data = world("pairs")["data"]
    with pytest.raises(ValueError, match="teachers"):
        TeacherMargins(teachers=())(data)
    with pytest.raises(ValueError, match="rejected"):
        TeacherMargins(teachers=(llama(),))(data.without("rejected"))


def measure(seed, arm):
    """FLOPs a student where three learn from one teacher: its margins kept with the rows, or asked of it by each."""
    nouns, bill = world("pairs", seed), Meter()
    teacher, data = nouns["reference"], nouns["data"]
    with bill.running():
        kept = TeacherMargins(teachers=(teacher,))(Run(seed), data) if arm == "method" else data
        part = MarginMSE() if arm == "method" else MarginMSE(teachers=(teacher,))
        for student in range(3):
            Run(seed).fit(llama(student), kept, part, steps=2, **HOW["pairs"])
    return bill.work / 3


CLAIM = Claim("teacher_margins", "pairs", "each student asks", "FLOPs a student", "lower", measure)
