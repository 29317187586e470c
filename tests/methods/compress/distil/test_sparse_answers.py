import json

import numpy as np
import pytest
import torch

from trainlore import recipe as recipes
from trainlore.claims import Claim
from trainlore.execute import execute
from trainlore.methods.compress.distil.sparse_answers import SparseAnswers
from trainlore.methods.compress.distil.sparse_logits import SparseLogits
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import aligned
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

TWO = {
    "name": "two students of one teacher",
    "given": {"rows": "world:digits/train", "big": {"model": "mlp", "width": 64}, "net": {"model": "mlp", "width": 16}},
    "steps": [
        {"train": {"model": "$big", "data": "$rows", "steps": 20, "lr": 0.01, "precision": "fp32", "as": "teacher"}},
        {"sparse_answers": {"data": "$rows", "teacher": "$teacher", "samples": 20, "as": "told"}},
        *(
            {
                "train": {
                    "model": "$net",
                    "data": "$told",
                    "steps": 20,
                    "lr": lr,
                    "precision": "fp32",
                    "with": [{"sparse_logits": {}}],
                    "as": name,
                }
            }
            for name, lr in (("first", 0.01), ("second", 0.02))
        ),
    ],
}


def test_two_students_of_a_recipe_share_one_asking_and_the_next_run_has_none(tmp_path):
    execute(recipes.read(TWO), tmp_path / "run")
    steps = json.loads((tmp_path / "run" / "run.json").read_text())["steps"]
    small, big = 64 * 16 + 2 * 16 * 16 + 16 * 10, 64 * 64 + 2 * 64 * 64 + 64 * 10
    assert steps[1]["forward"] == pytest.approx(2 * 1000 * big, rel=0.05)  # every row once
    for student in steps[2:]:  # its own network's passes over 20 batches of 32 rows and no other's
        assert student["forward"] == pytest.approx(2 * 20 * 32 * small, rel=0.05)
        assert student["effects"][0]["did"]["loss"] > 0 and not student["effects"][0]["dead"]
    more = json.loads(json.dumps(TWO))
    more["steps"][3]["train"]["lr"] = 0.03
    execute(recipes.read(more), tmp_path / "again")
    steps = json.loads((tmp_path / "again" / "run.json").read_text())["steps"]
    assert [s["cached"] for s in steps] == [True, True, True, False]


@pytest.mark.parametrize("name", ["text", "digits"])
def test_answers_in_the_rows_are_unbiased_and_lie_at_their_places(name):
    nouns = world(name)
    rows = nouns["data"].take(range(40)).take([7, 3, 30])
    told = SparseAnswers(teacher=nouns["teacher"], samples=3000)(rows)
    batch = told.batch(range(3), nouns["model"])
    kind = nouns["model"].kind
    with torch.no_grad():
        theirs = aligned(kind, nouns["teacher"](batch)).softmax(-1)
    loop = type("Loop", (), {"model": nouns["model"], "data": told, "device": torch.device("cpu")})()
    part = SparseLogits()
    said = part._kept(loop, part.start(loop), batch, theirs)
    shares = torch.nn.functional.one_hot(said, theirs.shape[-1]).float().mean(-2)
    real = batch["attention_mask"][:, 1:].bool() if name == "text" else torch.ones(3, dtype=torch.bool)
    torch.testing.assert_close(shares[real], theirs[real], atol=0.05, rtol=0)
    assert (shares[real] - theirs[real]).mean().abs() < 1e-3
    assert told["sparse_answers"].type.value_type == "uint16" and told.ids.tolist() == rows.ids.tolist()


def test_text_is_encoded_by_the_teacher_and_its_answers_teach():
    nouns, run = world("text"), Run(0)
    told = SparseAnswers(teacher=nouns["teacher"], samples=8)(Data.of({"text": list(nouns["data"].text())[:20]}))
    run.fit(nouns["model"], told, SparseLogits(), steps=4, **HOW["text"])
    assert run.effects[-1]["did"]["loss"] > 1e-3


def test_rows_that_changed_since_are_refused():
    nouns = world("digits")
    told = SparseAnswers(teacher=nouns["teacher"], samples=5)(nouns["data"].take(range(50)))
    moved = told.with_(features=told["features"] + 0.1)
    with pytest.raises(ValueError, match="as they were"):
        Run(0).fit(nouns["model"], moved, SparseLogits(), steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match="there is no column"):
        Run(0).fit(nouns["model"], nouns["data"], SparseLogits(), steps=1, **HOW["digits"])
    fewer = preset("mlp", classes=4, width=8)
    with pytest.raises(ValueError, match="the student knows 0 to 3"):
        part = SparseLogits()
        part._kept(None, {"each": 5, "last": 9}, {}, fewer.net(torch.zeros(2, 64)))
    with pytest.raises(ValueError, match="samples"):
        SparseAnswers(teacher=nouns["teacher"], samples=0)(nouns["data"])
    assert np.diff(told.lists("sparse_answers")[1]).tolist() == [5] * 50


def measure(seed, arm):
    """Rows a teacher is asked about until three students of as many epochs are trained."""
    nouns, run = world("digits", seed), Run(seed)
    teacher, asked = nouns["teacher"], []
    teacher.net.register_forward_pre_hook(lambda net, args: asked.append(len(args[0])))
    rows = nouns["data"].take(range(64))
    if arm == "method":
        rows = run.step(SparseAnswers(teacher=teacher, samples=8), rows)
    part = SparseLogits() if arm == "method" else SparseLogits(teacher=teacher, samples=8)
    for student in range(3):
        run.fit(world("digits", student)["model"], rows, part, steps=4, **HOW["digits"])
    return float(sum(asked))


CLAIM = Claim("sparse_answers", "digits", "sparse_logits with the teacher", "rows asked about", "lower", measure)
