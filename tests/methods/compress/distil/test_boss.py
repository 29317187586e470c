import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.distil.boss import BOSS, _Beside
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.objective.label_smoothing import LabelSmoothing
from trainlore.nouns import Model
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def search(seed=0, **fields):
    nouns = world("digits", seed)
    how = {"trials": 6, "warmup": 3, "top": 2, "steps": 10, "lr": 1e-2, **fields}
    part = BOSS(judge=Accuracy(), held_out=nouns["test"].take(range(200)), **how)
    return Run(seed).step(part, nouns["model"], nouns["data"].take(range(100)))


class Seen:
    model = Model(torch.nn.Linear(2, 3))


def test_loss_is_the_authors_sum():
    """alpha CE + (1 - alpha) MSELoss(student's logits, teacher's)."""
    student, teacher = torch.randn(4, 3), torch.randn(4, 3)
    net = torch.nn.Module()
    net.forward = lambda x: teacher
    part = _Beside(teacher=Model(net), share=0.3)
    got = part.loss(Seen, {}, {"features": torch.zeros(4, 2)}, student, lambda b, o: torch.full((4,), 2.0))
    by_hand = 0.3 * 2 + 0.7 * torch.nn.MSELoss()(student, teacher)
    torch.testing.assert_close(got.mean(), by_hand)


def test_what_a_search_tells():
    told = search().about["boss"]
    assert len(told["trials"]) == 6 and told["score"] == max(t["score"] for t in told["trials"])
    assert all("share" not in t for t in told["trials"][:3]) and all(0 <= t["share"] <= 1 for t in told["trials"][3:])
    assert all(1e-3 <= t["lr"] <= 1e-1 for t in told["trials"])
    assert search().about["boss"] == told != search(seed=1).about["boss"]


def test_students_go_on_from_the_best_and_teachers_are_others(monkeypatch):
    seen = []
    fit = Run.fit

    def watched(self, model, data, *parts, **how):
        mine = [p for p in parts if isinstance(p, _Beside)]
        seen.append((model.fingerprint, mine[0].teacher.fingerprint if mine else None))
        made = fit(self, model, data, *parts, **how)
        seen[-1] += (made.fingerprint,)
        return made

    monkeypatch.setattr(Run, "fit", watched)
    search(top=3, trials=8)
    born = world("digits")["model"].fingerprint
    assert all(start == born and teacher is None for start, teacher, _ in seen[:3])
    for t, (start, teacher, _) in enumerate(seen[3:], 3):
        before = [end for *_, end in seen[:t]]
        assert start in before and teacher in before and start != teacher
    seen.clear()
    search(inherit=False)
    assert all(start == born for start, *_ in seen) and all(teacher for _, teacher, _ in seen[3:])


def test_fields_of_inner_parts_are_searched():
    tune = {"label_smoothing.amount": (0.01, 0.3), "weight_decay": (1e-5, 1e-2)}
    told = search(inner=(LabelSmoothing(),), tune=tune).about["boss"]["trials"]
    assert len({t["label_smoothing.amount"] for t in told}) == 6 and "lr" not in told[0]


def test_bad_fields_are_named():
    bad = {"warmup": 1, "top": 1, "tune": {"depth": (1, 2)}}
    for field, value in bad.items():
        with pytest.raises(ValueError, match=field):
            search(**{field: value})
    with pytest.raises(ValueError, match="low <= high"):
        search(tune={"lr": (0.1, 0.01)})
    with pytest.raises(ValueError, match="warmup"):
        search(trials=2)


def measure(seed, arm):
    """Accuracy, on rows the search never saw, of its winner; the rival is the same search without teachers."""
    nouns = world("digits", seed)
    how = {"trials": 10, "warmup": 4 if arm == "method" else 10, "top": 4, "steps": 25, "lr": 1e-2}
    held, unseen = nouns["test"].take(range(200)), nouns["test"].take(range(200, 400))
    run = Run(seed)
    best = run.step(BOSS(judge=Accuracy(), held_out=held, **how), nouns["model"], nouns["data"].take(range(100)))
    logits = run.infer(best, unseen, lambda batch, out: out)
    return float(np.mean(logits.argmax(1).numpy() == unseen["label"]))


CLAIM = Claim("boss", "digits", "the optimizer alone", "accuracy of the winner", "higher", measure, quick=2)
