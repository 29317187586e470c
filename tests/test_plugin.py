"""A package that is installed beside Trainlore brings methods: listed, shown, checked and run like ours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"


def installed(where, package, source):
    """What an installer leaves behind: the package's own folder on the path, and its entry points."""
    info = where / f"{package}-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text(f"[trainlore.methods]\npolite = {package}\n")
    return os.pathsep.join([str(where), str(source), str(ROOT / "src")])


@pytest.fixture(scope="module")
def trainlore(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plugin")
    path = installed(folder / "site", "trainlore_polite", PLUGIN)

    def call(*args, path=path):
        env = {**os.environ, "PYTHONPATH": path, "TRAINLORE_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "trainlore", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder)

    call.folder = folder
    return call


def good(done):
    assert done.returncode == 0, done.stderr or done.stdout
    return done.stdout


def test_the_entry_point_is_the_one_the_package_declares():
    import tomllib

    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["trainlore.methods"] == {"polite": "trainlore_polite"}


def test_it_is_listed_and_shown(trainlore):
    rows = {r["name"]: r for r in json.loads(good(trainlore("ls", "--json")))}
    assert rows["polite_rows"]["kind"] == "Curate" and "dsir" in rows
    shown = json.loads(good(trainlore("show", "polite_rows", "--json")))
    assert shown["from"] == "polite" and set(shown["fields"]) == {"words", "keep"}
    assert good(trainlore("show", "polite_rows")).startswith("# Polite rows")
    bare = trainlore("show", "polite_rows", path=str(ROOT / "src"))
    assert bare.returncode == 2 and "no method 'polite_rows'" in bare.stderr


def test_it_keeps_the_laws(trainlore):
    assert "polite_rows keeps all" in good(trainlore("check", "polite_rows"))


def test_a_recipe_runs_it(trainlore):
    recipe, rows = trainlore.folder / "polite.yaml", trainlore.folder / "pool.jsonl"
    texts = ["Please, and thank you.", "Do it now.", "Thanks, kindly!", "Return the array."]
    rows.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    step = {"polite_rows": {"data": "$pool", "keep": 0.5, "as": "polite"}}
    recipe.write_text(yaml.safe_dump({"given": {"pool": "pool.jsonl"}, "steps": [step]}))
    assert "1 steps, no errors" in good(trainlore("validate", recipe))
    good(trainlore("run", recipe, "--out", "run"))
    record = json.loads((trainlore.folder / "run" / "run.json").read_text())
    assert record["steps"][0]["data"]["rows"] == 2 and "politeness" in record["steps"][0]["columns"]
    story = json.loads(good(trainlore("trail", "run", "--row", "1", "--json")))
    assert story[0]["what"] == "dropped" and story[0]["scores"] == {"politeness": 0.0}
    wrong = trainlore("validate", recipe, "--set", "steps.1.kep=0.2")
    assert wrong.returncode == 2 and "did you mean keep" in wrong.stderr


def test_a_name_that_is_taken_is_refused(trainlore, tmp_path):
    package = tmp_path / "source" / "taken"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    text = (PLUGIN / "trainlore_polite" / "polite_rows.py").read_text()
    (package / "dsir.py").write_text(text.replace('name="polite_rows"', 'name="dsir"'))
    done = trainlore("ls", path=installed(tmp_path / "site", "taken", tmp_path / "source"))
    assert (
        done.returncode == 2 and "brings a method 'dsir'" in done.stderr and "methods.data.select.dsir" in done.stderr
    )
