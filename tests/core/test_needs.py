"""What methods say they need of memory: a formula that is a number, held against the machine, and true when measured."""

import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from races.test_spec import RACE
from trainlore import cards, needs
from trainlore import recipe as recipes
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.nouns import Data
from trainlore.races import conduct
from trainlore.races.spec import read
from trainlore.registry import index, load

ROOT = Path(__file__).parents[2]
SAYING = [name for name, e in index().items() if "needs_memory" in e]


def machine(monkeypatch, total, free=None):
    memory = SimpleNamespace(total=total, available=total if free is None else free)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)


def rows(n, width):
    return Data.of({"features": np.zeros((n, width), np.float32)})


@pytest.mark.parametrize("name", SAYING)
def test_a_formula_grows_with_the_rows(name):
    fields = {k: rows(10, 4) for k, f in index()[name]["fields"].items() if "Data" in f["type"]}
    few, many = (needs.bytes_of(name, n, 384, fields) for n in (1000, 1_000_000))
    assert 0 < few < many and many < 2**40


def test_a_formula_is_of_rows_width_and_fields():
    assert needs.bytes_of("random_rows", 10**6) is None
    assert needs.bytes_of("vote_k", 1000, 8, {"k": 10}) == 1000 * (8 * 8 + 26 * 10)
    assert needs.bytes_of("vote_k", 1000, 8, {"k": "1k"}) - needs.bytes_of("vote_k", 1000, 8) == 1000 * 26 * 850
    whole = needs.of_method(load("vote_k")(k=10), rows(50, 6))
    assert (whole.name, whole.rows, whole.bytes) == ("vote_k", 50, 50 * (8 * 6 + 26 * 10))
    assert needs.of_method(load("random_rows")(), rows(50, 6)) is None
    of_rds = {"target": rows(7, 2)}  # text counts as 1 where there is some: with tasks it is not examples that are kept
    assert needs.bytes_of("rds", 1000, 0, of_rds) == 56_000
    assert needs.bytes_of("rds", 1000, 0, {**of_rds, "task": "kind"}) == 8_000


@pytest.mark.parametrize("formula", ["rows *", "open('x')", "rows.real", "rows * size", "'a' * 9", "[rows]"])
def test_what_is_no_formula_is_refused_and_never_run(monkeypatch, formula):
    entry = {"needs_memory": formula, "fields": {"colour": {"default": "'red'"}}}
    monkeypatch.setattr(needs, "entry", lambda name: entry)
    with pytest.raises(Bad, match="x: needs_memory = .* gives no number"):
        needs.bytes_of("x", 10)


def test_a_recipe_is_judged_before_it_runs(monkeypatch):
    data = rows(2000, 16)
    steps = [
        {"random_rows": {"data": "$pool", "keep": 0.5, "as": "half"}},
        {"vote_k": {"data": "$half", "k": 20, "as": "few"}},
        {"herding": {"data": "$few"}},
        {"herding": {"data": "$other", "as": "more"}},
    ]
    given = {"pool": "world:digits/train", "other": "world:digits/test"}
    steps = recipes.read({"given": given, "steps": steps}).steps
    found = needs.of_steps(steps, {"pool": data}.get)
    assert [(n.name, n.bytes) for n in found] == [("vote_k", 2000 * (8 * 16 + 26 * 20)), ("herding", 2000 * 16 * 16)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        needs.held_against(found)
    machine(monkeypatch, 2**40, free=2**20)
    with pytest.warns(UserWarning, match=r"vote_k on 2,000 rows needs about .* GiB are free: take a sample"):
        needs.held_against(found)
    machine(monkeypatch, 2**21)
    needs.held_against(found)
    with pytest.raises(
        Bad, match=r"vote_k on 2,000 rows .*, 2 of them at once, and the machine has 0.0 GiB: .*fewer jobs"
    ):
        needs.held_against(found, at_once=2)


def test_a_race_is_refused_before_its_pilot(tmp_path, monkeypatch):
    arms = {"plain": [{"random_rows": {"data": "$noisy", "keep": 0.5, "as": "rows"}}]}
    arms["herding"] = [{"herding": {"data": "$noisy", "keep": 0.5, "as": "rows"}}]
    then = [{"train": {"model": "$net", "data": "$rows", "as": "trained"}}]
    race = read({**RACE, "arms": arms, "then": then, "tune": {}})
    machine(monkeypatch, 2**16)
    with pytest.raises(
        Bad, match=r"herding on [\d,]+ rows needs about .*2 of them at once, and the machine has 0.0 GiB"
    ):
        conduct.conduct(race, tmp_path / "race", conduct.How(jobs=2))
    assert not list((tmp_path / "race").glob("heats/*"))


@pytest.mark.slow
def test_formulas_are_within_a_factor_two_of_what_is_measured(tmp_path):
    """Each method in a process of its own, on so many rows that the libraries' own needs do not matter."""
    command = [sys.executable, ROOT / "benchmarks" / "memory.py", "--rows", "60000", "--to", tmp_path / "kept.jsonl"]
    done = subprocess.run([*map(str, command), "--only", *SAYING], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("it says") == len(SAYING)


def test_a_step_and_a_recipe_that_need_more_than_there_is_are_refused(tmp_path, monkeypatch):
    machine(monkeypatch, 2**16)
    with pytest.raises(Bad, match=r"herding on 300 rows needs about .* and the machine has 0.0 GiB: take a sample"):
        load("herding")()(rows(300, 16))
    made = {
        "given": {"pool": "world:digits/train"},
        "steps": [{"random_rows": {"data": "$pool", "keep": 0.5, "as": "half"}}],
    }
    made["steps"].append({"herding": {"data": "$half"}})
    with pytest.raises(Bad, match="herding on 1,000 rows needs"):
        execute(recipes.read(made), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_card_says_it():
    assert "`rows * width * 16` bytes beside the data" in cards.page("herding")
    assert "## Memory" not in cards.page("random_rows")


def test_a_field_at_zero_is_left_to_the_method_to_refuse():
    assert needs.bytes_of("facility_location", 100, 16, {"cover": 0}) is None
