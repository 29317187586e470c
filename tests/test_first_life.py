"""The default recipe lives a whole life at toy size: every step runs, what it promises is in the folder, it resumes."""

import json
from pathlib import Path

import pytest
import yaml

from trainlore import recipe as recipes
from trainlore.execute import execute

RECIPE = Path(__file__).parents[1] / "src" / "trainlore" / "recipes" / "first_life.yaml"


def toy():
    """The recipe as it is shipped, with every budget cut down."""
    raw = yaml.safe_load(RECIPE.read_text())
    for name, source in raw["given"].items():
        if isinstance(source, str) and source.startswith("world:"):
            raw["given"][name] = {"data": source, "sample": 1500}
        elif "data" in source:
            source["sample"] = 40
        else:
            source["model"] = "llama-1m"
    for step in raw["steps"]:
        ((name, body),) = step.items()
        if name == "train":
            body.pop("tokens", None)
            body["steps"] = 24 if body["as"] == "pretrained" else 4
            body["batch_size"] = 2
            body["precision"] = "fp32"
        changes = {
            "dsir": {"tokens": 20_000},
            "bpe": {"vocab": 600},
            "flexround": {"steps": 3, "rows": 4},
            "samples": {"rows": 2, "new": 4},
        }
        if name == "random_rows":
            body.update({"tokens": 20_000 if body["as"] == "random" else 3_000})
        body.update(changes.get(name, {}))
        if "tolerance" in body:
            body["tolerance"] = 2.0
    return raw


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    folder = tmp_path_factory.mktemp("life") / "run"
    nouns = execute(recipes.read(toy()), folder)
    return folder, nouns


def test_every_step_ran_and_is_in_the_record(lived):
    folder, _ = lived
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "finished"
    assert len(record["steps"]) == record["total"] == len(toy()["steps"])
    dead = {e["part"] for s in record["steps"] for e in s["effects"] if e["dead"]}
    assert dead <= {"clip"}, dead  # a few steps of a fresh model need no clipping
    assert all(s["work"] > 0 for s in record["steps"] if s["kind"] == "Fit")


def test_the_saved_model_loads_with_the_library_everyone_uses(lived):
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    folder, nouns = lived
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    assert AutoTokenizer.from_pretrained(folder / "model").eos_token_id == model.config.eos_token_id
    assert pipeline("text-generation", model=str(folder / "model"))("Return the", max_new_tokens=3)[0][
        "generated_text"
    ].startswith("Return the")
    import torch

    ours, theirs = nouns["saved"].net.state_dict(), model.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_the_report_is_one_page_with_every_section(lived):
    page = (lived[0] / "report.html").read_text()
    for section in (
        "Verdicts",
        "Loss",
        "Data",
        "Measurements",
        "Samples",
        "Cost",
        "Switches",
        "Parity",
        "Trails",
        "Recipe",
    ):
        assert f"<h2>{section}</h2>" in page
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "") and "<script" not in page
    assert page.count("<details><summary>row ") == 10


def test_going_on_reuses_every_finished_step(lived):
    folder, nouns = lived
    again = execute(recipes.read(toy()), folder, resume=True)
    record = json.loads((folder / "run.json").read_text())
    assert all(s["cached"] for s in record["steps"] if s["name"] != "save")
    assert again["saved"].fingerprint == nouns["saved"].fingerprint
