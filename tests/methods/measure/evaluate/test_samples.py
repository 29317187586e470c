import pytest

from trainlore.claims import Claim
from trainlore.errors import Bad
from trainlore.methods.measure.evaluate.samples import Samples, overlap
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import tiny


def textbook(a, b):
    a, b = a.lower().split(), b.lower().split()
    rest, common = list(b), 0
    for w in a:
        if w in rest:
            rest.remove(w)
            common += 1
    if not common:
        return 0.0
    precision, recall = common / len(a), common / len(b)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize(
    ("a", "b"), [("the cat sat", "the cat ran"), ("a a b", "a b b"), ("x", "y"), ("The end", "the END")]
)
def test_overlap_is_f1_of_bags(a, b):
    assert overlap(a, b) == pytest.approx(textbook(a, b))


def test_empty_texts_agree_only_with_each_other():
    assert overlap("", "") == 1.0
    assert overlap("", "a") == 0.0


def test_prompts_and_references_are_kept_for_looking():
    w = tiny.world("sums")
    report = Run(0).step(Samples(rows=3, new=4), w["model"], w["test"])
    notes = report["word_f1"].notes["samples"]
    asked = dict(zip(w["test"].text("prompt"), w["test"].text("completion"), strict=True))
    assert len(notes) == 3 and all(asked[n["prompt"]] == n["reference"] for n in notes)


def test_text_is_split_into_prompt_and_reference():
    w = tiny.world("text")
    report = Run(0).step(Samples(rows=2, new=3, words=4), w["model"], w["held_out"])
    assert all(len(n["prompt"].split()) == 4 for n in report["word_f1"].notes["samples"])


def test_bad_fields_and_no_rows():
    w = tiny.world("sums")
    with pytest.raises(Bad, match="at least 1"):
        Samples(rows=0)(w["model"], w["test"])
    with pytest.raises(Bad, match="no rows"):
        Samples()(w["model"], Data.of({"prompt": ["1+1="], "completion": ["2"]}).take([]))


def measure(seed, arm):
    """Overlap with the right answers of a model that was trained to give them, against the model before."""
    w = tiny.world("sums", seed)
    if arm == "method":
        Run(seed).fit(w["model"], w["data"], steps=80, **tiny.HOW["sums"])
    return Run(seed).step(Samples(rows=40, new=4), w["model"], w["data"]).value


CLAIM = Claim(
    "samples", "sums", "the untrained model", "word F1 with the right sums", "higher", measure, seeds=10, quick=1
)
