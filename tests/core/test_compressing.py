"""The search for the smallest form: on real text, judged on rows it never calibrated with, and honest where it fails."""

from __future__ import annotations

import json

import pytest

from trainlore import compressing
from trainlore.cli import main
from trainlore.errors import Bad
from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.masks import weight_of
from trainlore.runs import Run
from trainlore.worlds.tiny import world


@pytest.fixture(scope="module")
def grown():
    """A small Llama that learned some text, so that its weights matter."""
    at = world("text")
    tokenizer = at["teacher"].tokenizer
    net = preset("llama-1m", vocab=max(320, len(tokenizer)), window=64, num_hidden_layers=2).net
    model = Model(net, "causal", tokenizer)
    return Run(0).fit(model, at["data"], steps=30, batch_size=16, lr=3e-3, precision="fp32", truncate=True), at["data"]


def test_the_smallest_within_the_goal(grown, tmp_path):
    model, data = grown
    record = compressing.compress(model, data, "4bit", "loss +5 %", tmp_path / "out", rows=16)
    assert {p["method"] for p in record["points"]} == {"nearest", "gptq", "awq"}
    within = [p for p in record["points"] if p["within"]]
    best = min(within, key=lambda p: p["bytes"])
    assert record["chosen"] == best["name"] and best["change"] + 1.645 * best["stderr"] <= record["allowed"]
    assert any(len(set(p["bits"].values())) > 1 for p in record["points"])  # bits a layer were tried
    back = Model.of(str(tmp_path / "out" / "model"))
    assert back.grids.keys() == best["bits"].keys()
    for path, grid in back.grids.items():
        assert grid.bits == best["bits"][path] and grid.holds(weight_of(back.net.get_submodule(path)))
    assert compressing.bytes_of(back) == best["bytes"] < record["bytes_before"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page and best["name"] in page
    front = [p for p in record["points"] if p["name"] in record["front"]]
    for p in front:
        assert not any(o["bytes"] < p["bytes"] and o["change"] < p["change"] for o in record["points"])


def test_a_goal_that_cannot_be_met_says_how_near_it_came(grown, tmp_path):
    model, data = grown
    with pytest.raises(Bad, match=r"no form of at most 2 bits keeps .* the nearest, \w+ 2 bits, costs \+"):
        compressing.compress(model, data, "2bit", "loss +0.0001", tmp_path / "out", rows=16)
    assert not list(tmp_path.iterdir())


def test_goals_and_bits_as_people_write_them():
    assert compressing.goal_of("loss +1 %", 3.0) == pytest.approx(0.03)
    assert compressing.goal_of("loss+0.02", 3.0) == 0.02
    assert compressing.bits_of("4bit") == 4 and compressing.bits_of("3.5 bits") == 3.5
    for wrong in ("accuracy +1", "loss 1 %", "loss +x"):
        with pytest.raises(Bad, match="goal"):
            compressing.goal_of(wrong, 1.0)
    for wrong in ("four", "1bit", "9bit"):
        with pytest.raises(Bad, match="--to"):
            compressing.bits_of(wrong)


def test_from_the_command_line(grown, tmp_path, monkeypatch, capsys):
    model, data = grown
    model.copy().save(tmp_path / "whole")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in list(data.text("text"))[:64]))
    monkeypatch.chdir(tmp_path)
    call = [
        "compress",
        "whole",
        "--data",
        "rows.jsonl",
        "--out",
        "small",
        "--to",
        "3bit",
        "--goal",
        "loss +5 %",
        "--rows",
        "8",
    ]
    assert said(monkeypatch, *call) == 0 and "MB instead of" in capsys.readouterr().out
    pytest.importorskip("compressed_tensors")
    assert said(monkeypatch, "export", "small/model", "--to", "packed", "--format", "compressed-tensors") == 0
    assert (tmp_path / "packed" / "model.safetensors").exists() and "tokens a second" in capsys.readouterr().out
    assert said(monkeypatch, *call) == 2 and "small exists" in capsys.readouterr().err


def said(monkeypatch, *words):
    """What the command line ends with."""
    monkeypatch.setattr("sys.argv", ["trainlore", *words])
    try:
        main()
    except SystemExit as left:
        return left.code or 0
    return 0
