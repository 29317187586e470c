"""Recipes: every error in one message with the way out, overrides, the store, the folder."""

import json

import pytest
import yaml

from trainlore import recipe as recipes
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.registry import load

GOOD = {
    "name": "toy",
    "given": {"train": "world:digits/train", "test": "world:digits/test", "net": "mlp"},
    "steps": [
        {"random_rows": {"data": "$train", "keep": 0.5, "as": "half"}},
        {
            "train": {
                "model": "$net",
                "data": "$half",
                "steps": 20,
                "lr": 1e-2,
                "precision": "fp32",
                "with": [{"wsd": {"decay": 0.3}}],
                "as": "small",
            }
        },
        {"accuracy": {"model": "$small", "data": "$test", "as": "exam"}},
    ],
}


def changed(**where):
    raw = yaml.safe_load(yaml.safe_dump(GOOD))
    for path, value in where.items():
        step, _, field = path.partition("__")
        ((_, body),) = raw["steps"][int(step[1:])].items()
        body[field] = value
    return raw


def test_a_good_one_runs_and_is_told(tmp_path):
    nouns = execute(recipes.read(GOOD), tmp_path / "run")
    assert nouns["exam"].value > 0.5
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "finished" and [s["name"] for s in record["steps"]] == [
        "random_rows",
        "train",
        "accuracy",
    ]
    assert record["steps"][1]["effects"][0]["part"] == "wsd" and record["steps"][1]["work"] > 0
    assert (tmp_path / "run" / "outcomes" / "03-exam.parquet").exists()
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 20


def test_the_null_recipe_is_the_same_in_python(tmp_path):
    import trainlore as tl

    nouns = execute(recipes.read(GOOD), None)
    again = tl.run(_file(tmp_path, GOOD))
    assert nouns["small"].fingerprint == again["small"].fingerprint


def _file(folder, raw):
    path = folder / "r.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ({"s0__keeep": 1}, "no field 'keeep'; did you mean keep"),
        ({"s0__keep": "lots"}, "keep: Expected `float`"),
        ({"s0__data": "$trian"}, r"nothing is called \$trian; did you mean train"),
        ({"s0__data": "$net"}, r"\$net is a Model, not a Data; there is \$test, \$train"),
        ({"s1__with": [{"accuracy": {}}]}, "accuracy is a Measure, not a Part"),
        ({"s1__with": [{"wdd": {}}]}, "no method 'wdd'; did you mean wsd"),
        ({"s1__epochs": 1}, "give one budget"),
        ({"s1__stepps": 1}, "no field 'stepps'; did you mean steps"),
        ({"s2__as": "two words"}, "must be a word"),
    ],
)
def test_mistakes_are_named_with_the_way_out(where, says):
    with pytest.raises(Bad, match=says):
        recipes.read(changed(**where))


def test_all_errors_come_at_once_and_a_part_is_no_step():
    raw = changed(s0__keep="lots", s1__data="$nothing")
    raw["steps"].append({"ema": {"model": "$small"}})
    raw["steps"].append({"dsirr": {"data": "$train"}})
    with pytest.raises(Bad) as error:
        recipes.read(raw)
    text = str(error.value)
    assert "4 errors" in text or text.count("\n") >= 4
    assert (
        "step 4 (ema): ema is a part" in text and "did you mean dsir" in text and "step 1" in text and "step 2" in text
    )


def test_wrong_envelopes_are_refused(tmp_path):
    with pytest.raises(Bad, match="unknown field"):
        recipes.read({**GOOD, "stepps": []})
    with pytest.raises(Bad, match="at least one step"):
        recipes.read({**GOOD, "steps": []})
    (tmp_path / "x.yaml").write_text("a: [1")
    with pytest.raises(Bad, match="is not YAML"):
        recipes.read(tmp_path / "x.yaml")
    with pytest.raises(Bad, match="no recipe"):
        recipes.read(tmp_path / "y.yaml")
    for source, says in (
        ("world:digitz", "no world"),
        ("world:digits/all", "no part"),
        ("lama-3m", "no file, folder, world or preset"),
    ):
        with pytest.raises(Bad, match=says):
            recipes.read({**GOOD, "given": {**GOOD["given"], "train": source}})


def test_overrides():
    made = recipes.read(GOOD | {}, ["steps.1.keep=0.2", "steps.small.steps=7", "seed=3"])
    assert made.steps[0].fields["keep"] == 0.2 and made.steps[1].fields["steps"] == 7 and made.spec.seed == 3
    for bad in ("steps.9.keep=1", "keep", "stepps.1.keep=1", "steps.nobody.keep=1"):
        with pytest.raises(Bad, match="cannot set"):
            recipes.read(yaml.safe_load(yaml.safe_dump(GOOD)), [bad])


def test_numbers_people_write():
    raw = changed(s1__lr="3e-3")
    assert recipes.convert("3e-3", "float") == 0.003 and recipes.convert("2M", "int | float | str | None") == 2_000_000
    recipes.read(raw)


def test_finished_steps_are_reused_and_changed_ones_are_not(tmp_path):
    execute(recipes.read(GOOD), tmp_path / "a")
    nouns = execute(recipes.read(changed(s1__steps=30)), tmp_path / "b")
    cached = [s["cached"] for s in json.loads((tmp_path / "b" / "run.json").read_text())["steps"]]
    assert cached == [True, False, False] and nouns["exam"].value > 0.5
    first, second = (json.loads((tmp_path / n / "run.json").read_text())["meter"] for n in "ab")
    assert second["work"] > first["work"]  # what came from the store is charged all the same


def test_folders_are_not_overwritten_and_changed_recipes_not_resumed(tmp_path):
    execute(recipes.read(GOOD), tmp_path / "a")
    with pytest.raises(Bad, match="exists: choose another --out"):
        execute(recipes.read(GOOD), tmp_path / "a")
    execute(recipes.read(GOOD), tmp_path / "a", force=True)
    with pytest.raises(Bad, match="not the one this run began with"):
        execute(recipes.read(changed(s1__steps=30)), tmp_path / "a", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(Bad, match="not a run folder"):
        execute(recipes.read(GOOD), tmp_path / "mine", force=True)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_a_dead_switch_fails_strict(tmp_path):
    raw = changed(s1__with=[{"clip": {"norm": 1e9}}])
    execute(recipes.read(raw), tmp_path / "lenient")
    with pytest.raises(Bad, match="clip did nothing"):
        execute(recipes.read(changed(s1__with=[{"clip": {"norm": 1e8}}])), tmp_path / "strict", strict=True)


def test_an_interrupted_training_goes_on_to_the_same_bits(tmp_path):
    from trainlore import execute as module
    from trainlore.runs import Interrupted, Run

    whole = execute(recipes.read(GOOD), tmp_path / "whole" / "run")
    log, fell = Run.log, []

    def stop(self, record, often=True):
        log(self, record, often)
        if record["t"] == 9 and not fell:
            fell.append(1)
            self.interrupted = True

    Run.log = stop
    try:
        with pytest.raises(Interrupted):
            module.execute(recipes.read(GOOD), tmp_path / "broken" / "run")
    finally:
        Run.log = log
    assert json.loads((tmp_path / "broken" / "run" / "run.json").read_text())["state"] == "interrupted"
    again = module.execute(recipes.read(GOOD), tmp_path / "broken" / "run", resume=True)
    assert again["small"].fingerprint == whole["small"].fingerprint
    assert (tmp_path / "broken" / "run" / "metrics.jsonl").read_text().count("\n") == 20


def test_every_starter_recipe_is_valid():
    from trainlore.cli.shipped import starters

    assert starters()
    for path in starters():
        assert recipes.read(path).steps


def test_methods_are_called_plainly_too():
    import trainlore as tl

    rows = tl.RandomRows(keep=0.25)(["a b c", "d e f", "g h i", "j k l"])
    assert len(rows) == 1 and isinstance(
        tl.DSIR(target=tl.Data.of(["a b"]), keep=0.5, min_words=0)(["a b", "x y"]), tl.Data
    )
    assert load("random_rows") is tl.RandomRows
    with pytest.raises(AttributeError):
        _ = tl.NoSuchMethod
