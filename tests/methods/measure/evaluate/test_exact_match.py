import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.exact_match import ExactMatch
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


class Scribe(Run):
    """A run that writes what it is told."""

    def generate(self, model, prompts, **how):
        self.how = how
        return self.written


def test_to_the_letter_but_for_white_space_around():
    model = world("sums")["model"]
    data = Data.of(
        {
            "prompt": ["1+1=", "1+2=", "2+2=", "9+9="],
            "completion": ["2", "3", "4", "18"],
            "domain": ["a", "a", "b", "b"],
        }
    )
    run = Scribe(0)
    run.written = [" 2\n", "4", "42", "18"]
    report = ExactMatch()(run, model, data)
    assert report["exact_match"].values.tolist() == [1, 0, 0, 1] and report["starts_right"].values.tolist() == [
        1,
        0,
        1,
        1,
    ]
    assert report["exact_match"].by("domain") == {"a": 0.5, "b": 0.5}
    assert report["exact_match"].notes["wrong"][0] == {"row": 1, "written": "4", "expected": "3"}
    assert run.how["new"] == 3 and run.how["temperature"] == 0.0  # two digits and the end
    ExactMatch(new=5)(run, model, data)
    assert run.how["new"] == 5


def test_a_model_that_knows_its_rows_matches_them():
    nouns, run = world("sums"), Run(0)
    rows = nouns["data"].take(range(12))
    model = run.fit(nouns["model"], rows, steps=150, **{**HOW["sums"], "lr": 1e-2})
    assert run.step(ExactMatch(), model, rows).value > 0.9


def test_missing_columns_are_named():
    nouns = world("sums")
    with pytest.raises(ValueError, match="completion"):
        ExactMatch()(nouns["model"], nouns["test"].without("completion"))


def measure(seed, arm):
    """Share of unseen sums done after training, against before."""
    nouns, run = world("sums", seed), Run(seed)
    model = run.fit(nouns["model"], nouns["data"], steps=40, **HOW["sums"]) if arm == "method" else nouns["model"]
    return run.step(ExactMatch(), model, nouns["test"]).value


CLAIM = Claim("exact_match", "sums", "untrained model", "share of unseen sums done", "higher", measure)
