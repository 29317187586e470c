"""Whole races on digits: the same bits wherever and however often they are run, and nothing lost on the way."""

import copy
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from races.test_spec import RACE
from trainlore.errors import Bad
from trainlore.races import conduct, heat
from trainlore.races.conduct import How
from trainlore.races.spec import read

SRC = Path(__file__).parents[2] / "src"


def raced(folder, change=None, how=None, **more):
    made = read({**copy.deepcopy(RACE), **(change or {})})
    return conduct.conduct(made, folder, how or How(jobs=2), **more)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished race of three arms and three seeds, two heats at a time."""
    folder = tmp_path_factory.mktemp("race") / "a"
    return folder, raced(folder)


def bits(folder):
    table = pq.read_table(folder / "outcomes.parquet").sort_by(
        [("arm", "ascending"), ("seed", "ascending"), ("row", "ascending")]
    )
    return table.to_pydict()


def test_a_race_says_what_happened(done):
    folder, record = done
    assert record["state"] == "finished" and record["verdict"].endswith(".")
    assert [e["arm"] for e in record["effects"]] == ["smooth", "ema"] and len(record["pairs"]) == 3
    for e in record["effects"]:
        assert e["seeds"] == 3 and e["rows"] == 200 and e["detectable"] > 0
        assert e["interval"][0] <= e["difference"] <= e["interval"][1]
    table = bits(folder)
    assert len(table["value"]) == 3 * 3 * 200 and set(table["value"]) <= {0.0, 1.0}
    for name, arm in record["arms"].items():
        mine = [v for v, a in zip(table["value"], table["arm"], strict=True) if a == name]
        assert np.mean(mine) == pytest.approx(np.mean(list(arm["scores"].values())))
        assert arm["bill"]["steps"] == 20 and len(arm["tracks"]["1"]) == 8
    acted = {e["part"]: e["dead"] for a in record["arms"].values() for s in a["did"] for e in s["effects"]}
    assert acted["label_smoothing"] is False and not (folder / ".store").exists()


def test_the_report_is_one_page_with_its_pictures(done):
    page = (done[0] / "report.html").read_text()
    assert page.count("<svg") >= 3 and "cannot" in page and "http" not in page.replace("http://www.w3.org", "")
    for word in ("Verdict", "Arms", "Curves", "Cost", "Forecast", "race.yaml"):
        assert word in page


def test_arms_see_the_same_rows_and_a_twin_is_its_twin(tmp_path):
    arms = {"plain": None, "twin": None, "null": {"with": [{"label_smoothing": {"amount": 0.0}}]}}
    record = raced(tmp_path / "r", {"arms": arms, "seeds": 2})
    scores = [a["scores"] for a in record["arms"].values()]
    assert scores[0] == scores[1] == scores[2]
    assert all(e["verdict"] == "cannot separate" and e["p"] == 1 for e in record["effects"])
    assert "does nothing here" in (tmp_path / "r" / "report.html").read_text()


def test_curves_show_the_weights_that_an_arm_would_hand_on(tmp_path):
    exam = {"accuracy": {"model": "$trained", "data": "$valid"}}
    record = raced(tmp_path / "r", {"valid": exam, "test": exam, "seeds": 2})
    for arm in record["arms"].values():  # of `ema` the mean, which is not what is being trained
        for seed, score in arm["scores"].items():
            assert arm["tracks"][seed][-1]["score"] == pytest.approx(score)


def test_one_process_at_a_time_gives_the_same_bits(done, tmp_path):
    raced(tmp_path / "r", how=How(jobs=1))
    assert bits(tmp_path / "r") == bits(done[0])


def test_on_ray_the_same_bits(done, tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", str(SRC))
    raced(tmp_path / "r", how=How(jobs=2, on="ray"))
    assert bits(tmp_path / "r") == bits(done[0])


def test_after_kill_9_a_race_goes_on_with_the_same_numbers(done, tmp_path):
    folder = tmp_path / "r"
    (tmp_path / "race.json").write_text(json.dumps(RACE))
    code = (
        "from pathlib import Path; import json, sys; from trainlore.races import conduct, spec\n"
        "if __name__ == '__main__':\n"
        "    race = spec.read(json.loads(Path(sys.argv[1]).read_text()))\n"
        "    conduct.conduct(race, Path(sys.argv[2]), conduct.How(jobs=2))\n"
    )
    (tmp_path / "go.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(SRC)}
    going = subprocess.Popen(
        [sys.executable, str(tmp_path / "go.py"), str(tmp_path / "race.json"), str(folder)],
        env=env,
        start_new_session=True,
    )
    end = time.monotonic() + 120
    while going.poll() is None and len(list(folder.glob("heats/*/*/heat.json"))) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert going.poll() is None, "the race ended before it could be killed"
    going.kill()
    going.wait()
    end = time.monotonic() + 20
    with pytest.raises(ProcessLookupError):  # its workers leave too, and write no more
        while time.monotonic() < end:
            os.killpg(going.pid, 0)
            time.sleep(0.05)
    record = conduct.resume(folder)
    assert record["state"] == "finished" and bits(folder) == bits(done[0])


def test_an_arm_that_crashes_loses_its_seed_and_not_the_race(tmp_path, monkeypatch):
    race = read({**copy.deepcopy(RACE), "seeds": 3})
    made = conduct.Conductor.task

    def task(self, arm, seed, *rest, **more):
        found = made(self, arm, seed, *rest, **more)
        if arm.name == "ema" and seed == 1:
            found["recipe"]["steps"][0]["train"]["lr"] = 1e30  # this seed diverges
        return found

    monkeypatch.setattr(conduct.Conductor, "task", task)
    record = conduct.conduct(race, tmp_path / "r", How(jobs=2))
    ema = record["arms"]["ema"]
    assert list(ema["scores"]) == ["0", "2"] and "loss is" in ema["lost"]["1"]
    assert next(e for e in record["effects"] if e["arm"] == "ema")["seeds"] == 2


def test_an_arm_that_cannot_run_is_named_before_the_race(tmp_path):
    arms = {"plain": None, "dpo": {"with": ["dpo"]}, "ema": {"with": ["ema"]}}
    record = raced(tmp_path / "r", {"arms": arms, "seeds": 2})
    assert "dpo" in record["unfit"] and not record["arms"]["dpo"]["scores"] and record["state"] == "finished"


def test_losing_arms_are_dropped_and_the_risk_is_stated(tmp_path):
    body = RACE["then"][0]["train"]
    arms = {f"lr {lr}": [{"train": {**body, "lr": lr}}] for lr in (1e-2, 2e-2, 1e-3, 1e-6)}
    record = raced(tmp_path / "r", {"arms": arms, "then": [], "budget": "80-steps"}, How(jobs=2, halving=True))
    assert list(record["dropped"]) == ["lr 1e-06", "lr 0.001"]  # of three challengers two stay, then one
    assert [d["rung"] for d in record["dropped"].values()] == [0.25, 0.5]
    assert all(0 <= d["chance"] < 0.2 for d in record["dropped"].values())
    assert [e["arm"] for e in record["effects"]] == ["lr 0.02"] and not record["arms"]["lr 1e-06"]["scores"]


def test_every_arm_gets_the_same_trials_and_pays_for_them(tmp_path):
    pytest.importorskip("optuna")
    change = {"tune": {"train.lr": [1e-4, 1e-3, "log"]}, "seeds": 2}
    record = raced(tmp_path / "r", change, How(jobs=2, tune=3))
    assert {len(t["trials"]) for t in record["tuning"].values()} == {3}
    for name, t in record["tuning"].items():
        assert t["trials"][0]["values"] == {} and record["arms"][name]["search"]["work"] > 0
        assert t["best"] == {}  # the rates offered are far too small: what stood in the race is best
    assert record["arms"]["plain"]["scores"] and not (tmp_path / "r" / "trials").exists()


def test_work_as_budget_counts_what_was_spent_before(tmp_path):
    change = {
        "arms": {"plain": None, "sam": {"with": ["sam"]}, "nothing left": {"with": [{"ema": {"decay": 0.9}}]}},
        "budget": "20M-work",
        "seeds": 2,
    }
    record = raced(tmp_path / "r", change)
    plain, sam = record["arms"]["plain"]["bill"], record["arms"]["sam"]["bill"]
    assert sam["steps"] == pytest.approx(plain["steps"] / 2, abs=1) and sam["work"] == pytest.approx(
        plain["work"], rel=0.1
    )


@pytest.mark.parametrize(
    ("change", "how", "says"),
    [
        ({"seeds": 1}, How(), "one seed cannot tell"),
        ({"given": {**RACE["given"], "test": {"data": "world:digits/test", "skip": 397}}}, How(), "has 3 rows: even if all"),
        ({"given": {**RACE["given"], "valid": {"data": "world:digits/test", "skip": 300}}}, How(), "100 of 200 test rows stand in .valid"),
        ({"valid": {}}, How(tune=2), "need `valid`"),
    ],
)  # fmt: skip
def test_races_that_would_not_be_honest_are_refused(tmp_path, change, how, says):
    with pytest.raises(Bad, match=says):
        raced(tmp_path / "r", change, how)


def test_rows_that_are_only_thinned_out_into_the_test_are_no_overlap(tmp_path):
    given = {**copy.deepcopy(RACE["given"]), "exam": {"data": "world:digits/test", "skip": 200}}
    given.pop("test")
    thinned = {"random_rows": {"data": "$exam", "keep": 0.5, "as": "test"}}
    assert raced(tmp_path / "a", {"given": given, "prepare": [thinned], "seeds": 2})["verdict"]
    learned = [thinned, {"train": {"model": "$net", "data": "$exam", "steps": 1, "precision": "fp32", "as": "start"}}]
    then = [{"train": {**RACE["then"][0]["train"], "model": "$start"}}]
    with pytest.raises(Bad, match=r"stand in \$exam too"):
        raced(tmp_path / "b", {"given": given, "prepare": learned, "then": then, "seeds": 2})


def test_overlap_can_be_allowed_and_one_seed_gets_no_verdict(tmp_path):
    given = {**RACE["given"], "valid": {"data": "world:digits/test", "skip": 300}}
    record = raced(tmp_path / "r", {"given": given, "seeds": 1}, How(exploratory=True, allow_overlap=True))
    assert record["verdict"] == "Exploratory: no verdict is spoken." and record["effects"] == []
    assert record["overlap"] == {"valid": 100}


def test_labels_that_training_never_shows_are_named(tmp_path):
    from trainlore.nouns import Data

    rows = Data.of("world:digits/train")
    few = Data(rows.table.filter(np.asarray(rows["label"]) != 7))
    import pyarrow.parquet

    pyarrow.parquet.write_table(few.table, tmp_path / "few.parquet")
    with pytest.raises(Bad, match="label 7, which .noisy never shows"):
        raced(tmp_path / "r", {"given": {**RACE["given"], "noisy": str(tmp_path / "few.parquet")}})


def test_a_folder_that_is_there_is_not_replaced_unasked(done, tmp_path):
    with pytest.raises(Bad, match="exists: choose another"):
        raced(done[0])
    with pytest.raises(Bad, match="is not a race: it has no race.json"):
        conduct.resume(tmp_path)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(Bad, match="not a race folder"):
        raced(tmp_path, force=True)


def test_somebody_says_no_after_the_pilot_and_it_is_kept(tmp_path):
    asked = []
    with pytest.raises(Bad, match="not begun"):
        raced(tmp_path / "r", {"seeds": 2}, ask=lambda text: asked.append(text) or False)
    assert "3 arms x 2 seeds" in asked[0] and "FLOP" in asked[0]
    assert heat.track(next((tmp_path / "r").glob("heats/plain/seed-0")))["at"]["done"] < 0.1
    assert conduct.resume(tmp_path / "r")["state"] == "finished"
