"""`trainlore race` as people type it: what it prints, writes, publishes and refuses."""

import json
import re
import sys
from pathlib import Path

import pytest
import yaml

from races.test_spec import changed
from trainlore import cli
from trainlore.cli.shipped import standing
from trainlore.races import published, spec

ROOT = Path(__file__).parents[2]
STANDING = sorted(p.stem for p in (ROOT / "races").glob("*.yaml"))


@pytest.fixture
def tl(tmp_path, capsys, monkeypatch):
    """Run a command in this process, in a folder of its own: gives exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["trainlore", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def test_a_race_from_its_file_to_the_published_line(tl, tmp_path):
    race = changed(seeds=2, arms={"plain": None, "smooth": {"with": [{"label_smoothing": {"amount": 0.2}}]}})
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(race, sort_keys=False))
    code, out, err = tl("race", "toy.yaml", "--budget", "10-steps", "--out", "r", "--yes", "--publish", "-q")
    assert code == 0, err
    assert "baseline" in out and re.search(r"smooth +0\.\d+", out) and "r/report.html" in out
    record = json.loads((tmp_path / "r" / "race.json").read_text())
    assert record["budget"] == "10-steps" and record["verdict"] in " ".join(out.split())
    (line,) = (tmp_path / "results" / "races" / "toy.jsonl").read_text().splitlines()
    assert json.loads(line)["effects"] == record["effects"] and spec.read(yaml.safe_load(json.loads(line)["race"]))
    page = published.page(tmp_path / "results" / "races")
    assert "## Toy" in page and f"**{record['verdict']}**" in page and "| plain |" in page and "toy.html" in page
    assert "<svg" in (tmp_path / "results" / "races" / "toy.html").read_text()
    assert tl("report", "r")[0] == 0 and tl("resume", "r", "-q")[0] == 0
    assert json.loads((tmp_path / "r" / "race.json").read_text())["effects"] == record["effects"]


def test_a_race_in_words_is_shown_as_a_file_that_can_be_raced(tl, tmp_path):
    words = ("--arms", "ema,sam", "--data", "world:digits/noisy", "--budget", "300-steps")
    code, out, _ = tl("race", *words, "--seeds", 3, "--set", "sam.rho=0.2", "--show")
    made = spec.read(yaml.safe_load(out))
    assert code == 0 and list(made.arms) == ["plain", "ema", "sam"] and made.budget == ("steps", 300)
    assert made.arms["sam"].parts == [{"sam": {"rho": 0.2}}] and len(made.seeds) == 3


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--arms", "ema"), "--data"),
        (("--arms", "emma", "--data", "world:digits/noisy"), "did you mean ema"),
        (("--arms", "ema,dsir", "--data", "world:digits/noisy"), "arms of one race do the same kind of thing"),
        (("--family", "data/selekt", "--data", "world:digits/noisy"), "did you mean data/select"),
        (("--arms", "ema", "--data", "world:digits/noisy", "--budget", "lots"), "such as 2M-tokens"),
        (("--arms", "ema", "--data", "world:digits/noisy", "--metric", "speling"), "no metric"),
        (("wrong_label",), "did you mean wrong_labels"),
        (("wrong_labels", "--arms", "ema"), "leave --arms"),
        (("wrong_labels", "--seeds", "1", "--yes", "-q"), "--exploratory"),
    ],
)
def test_mistakes_end_in_one_line_and_leave_nothing(tl, tmp_path, args, says):
    code, out, err = tl("race", *args, "--out", "r")
    assert code == 2 and err.startswith("error: ") and says in err, (out, err)
    assert not (tmp_path / "r").exists() or not list((tmp_path / "r").rglob("heat.json"))


@pytest.mark.parametrize("name", STANDING)
def test_standing_races_are_sound(name):
    made = spec.read(standing(name), [f"given.{g}=world:two-domains/pool" for g in _hub(name)])
    assert (
        made.spec.question.endswith("?") and made.baseline in made.arms and len(made.arms) >= 4 and len(made.seeds) >= 4
    )


def _hub(name):
    given = yaml.safe_load(standing(name).read_text())["given"]
    return [k for k, v in given.items() if isinstance(v, dict) and str(v.get("data")).startswith("hub:")]
