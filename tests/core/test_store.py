"""The store: what is kept is what was given, columns are shared, and a write is whole or absent."""

import errno
import json
import os
import sqlite3

import numpy as np
import pyarrow as pa
import pytest
import torch

from trainlore import memory, trees
from trainlore import store as stores
from trainlore.checkpoints import Checkpoints
from trainlore.errors import Bad
from trainlore.nouns import Data, Report
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.store import Store
from trainlore.trees import load_tree, save_tree
from trainlore.worlds import tiny

TREE = {
    "t": 3,
    "x": torch.arange(6.0).reshape(2, 3),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "empty": torch.zeros(0, 4),
    "array": np.arange(3),
    "deep": [{1: ("a", None, True)}, [], 0.1 + 0.2],
}


def full(*args, **how):
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_a_tree_comes_back_as_it_was(tmp_path):
    save_tree(TREE, tmp_path / "t")
    back = load_tree(tmp_path / "t")
    assert all(torch.equal(back[k], TREE[k]) and back[k].dtype == TREE[k].dtype for k in ("x", "half", "empty"))
    assert back["array"].tolist() == [0, 1, 2] and back["deep"] == TREE["deep"] and back["t"] == 3
    with pytest.raises(TypeError, match="not function"):
        save_tree({"f": full}, tmp_path / "u")
    assert files(tmp_path) == ["t", "t/hash", "t/tensors.safetensors", "t/tree.json"]


def test_a_damaged_tree_is_not_read(tmp_path):
    save_tree(TREE, tmp_path / "t")
    raw = bytearray((tmp_path / "t" / "tensors.safetensors").read_bytes())
    raw[-1] ^= 1
    (tmp_path / "t" / "tensors.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged"):
        load_tree(tmp_path / "t")


def test_data_comes_back_narrowed_and_columns_are_shared(tmp_path):
    store = Store(tmp_path)
    pool = Data.of(
        {
            "text": [f"row {i}" * 50 for i in range(400)],
            "n": np.arange(400),
            "r": pa.array([[i] * (i % 3) for i in range(400)]),
        }
    )
    part = pool.take([7, 3, 350]).with_(score=[0.5, 1.5, np.nan])
    store.put("a", pool, {"seconds": 1})
    size = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())
    store.put("b", part, {})
    store.put("c", part.take([0]), {})
    more = sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()) - size
    assert more < size / 10 and len(list((tmp_path / "columns").iterdir())) == 4
    for key, data in (("a", pool), ("b", part), ("c", part.take([0]))):
        back = store.get(key)
        assert (
            back.fingerprint == data.fingerprint
            and back.ids.tolist() == data.ids.tolist()
            and list(back.text()) == list(data.text())
        )
        assert back.lists("r")[0].tolist() == data.lists("r")[0].tolist()
    assert store.get("b")["score"].tolist()[:2] == [0.5, 1.5] and np.isnan(store.get("b")["score"][2])
    assert store.record("a") == {"noun": "Data", "seconds": 1} and store.has("a") and not store.has("z")
    odd = Data(pool.table.take([5, 6]), None, np.array([5, 6]), ({"method": "x"},))
    store.put("d", odd, {})
    assert store.get("d").ids.tolist() == [5, 6] and store.get("d").trail == ({"method": "x"},)
    nothing = pool.take([])
    store.put("e", nothing, {})
    assert len(store.get("e")) == 0 and store.get("e").columns == pool.columns


def test_a_model_comes_back_with_its_weights_tokenizer_and_history(tmp_path):
    store = Store(tmp_path)
    w = tiny.world("text")
    model = Run(0).fit(w["model"], w["data"], steps=2, **tiny.HOW["text"])
    next(model.net.parameters()).requires_grad_(False)
    model.trail = ({"method": "train", "work": 1.0},)
    mlp = preset("mlp", seed=3, width=16)
    for key, noun in (("llama", model), ("mlp", mlp)):
        assert store.put(key, noun, {})
        assert store.get(key).fingerprint == noun.fingerprint
    back = store.get("llama")
    assert back.trail == model.trail and back.about == model.about and back.kind == "causal"
    assert [p.requires_grad for p in back.net.parameters()] == [p.requires_grad for p in model.net.parameters()]
    assert back.tokenizer("kamu gale")["input_ids"] == model.tokenizer("kamu gale")["input_ids"]
    assert all(torch.equal(v, back.probe[k]) for k, v in model.probe.items())
    with torch.no_grad():
        assert torch.equal(back(model.probe), model(model.probe))


def test_a_model_that_is_no_longer_its_config_is_not_kept(tmp_path):
    store = Store(tmp_path)
    model = tiny.llama()
    model.net.model.layers[0].mlp.up_proj = torch.nn.Sequential(model.net.model.layers[0].mlp.up_proj)
    assert not store.put("x", model, {}) and not store.has("x") and files(tmp_path) == ["steps"]
    from trainlore.nouns import Model

    assert not store.put("y", Model.of(torch.nn.Linear(2, 2)), {})


def test_a_report_comes_back(tmp_path):
    report = Report.join(
        Report.of(
            "loss",
            [1.0, float("nan")],
            "lower",
            rows=[4, 2],
            groups={"domain": ["a", "b"]},
            notes={"curve": [1, {"x": None}]},
            weights=[1, 3],
        ),
        Report.of("accuracy", []),
    )
    Store(tmp_path).put("r", report, {})
    back = Store(tmp_path).get("r")
    assert [m.metric for m in back.measured] == ["loss", "accuracy"] and back["loss"].notes == {
        "curve": [1, {"x": None}]
    }
    assert (
        back["loss"].rows.tolist() == [4, 2]
        and back["loss"].weights.tolist() == [1, 3]
        and back["loss"].groups == {"domain": ["a", "b"]}
    )
    assert np.array_equal(back["loss"].values, report["loss"].values, equal_nan=True) and back["loss"].better == "lower"


def test_means_of_a_report_count_rows_by_their_weight():
    m = Report.of("x", [1.0, 4.0, 7.0], groups={"d": ["a", "b", "b"]}, weights=[2, 1, 0])["x"]
    assert m.value == 2.0 and m.by("d") == {"a": 1.0, "b": 4.0} and m.stderr > 0
    nothing = Report.of("x", [1.0, 4.0], groups={"d": ["a", "b"]}, weights=[0, 0])["x"]  # rows with nothing to learn
    assert np.isnan([nothing.value, nothing.stderr, nothing.by("d")["a"], Report.of("x", []).value]).all()


@pytest.mark.parametrize("what", ["data", "model", "report"])
def test_a_full_disk_is_told_and_nothing_is_half_written(what, tmp_path, monkeypatch):
    noun = {"data": Data.of(["a", "b"]), "model": preset("mlp"), "report": Report.of("x", [1.0])}[what]
    for place in (
        (os, "replace"),
        (os, "fsync"),
        (pa, "OSFile"),
        (stores.Path, "write_text"),
        (stores.Path, "write_bytes"),
    ):
        if place[1] == "OSFile" and what != "data":
            continue
        store = Store(tmp_path / place[1])
        with monkeypatch.context() as m:
            m.setattr(*place, full)
            with pytest.raises(Bad, match="the disk is full: .* could not be written; free some room"):
                store.put("k", noun, {})
        assert not store.has("k") and not list((store.root / "steps").iterdir())
        assert not [f for f in files(store.root) if "part" in f]
        store.put("k", noun, {})
        assert store.has("k")


def test_a_really_full_disk(tmp_path):
    import subprocess

    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True).returncode
    ):
        pytest.skip("a small file system cannot be mounted here")
    try:
        store = Store(tmp_path)
        store.put("small", Data.of(["a"]), {})
        with pytest.raises(Bad, match="the disk is full"):
            store.put("data", Data.of({"text": ["x" * 200_000]}), {})
        with pytest.raises(Bad, match="the disk is full"):
            store.put("model", preset("mlp", width=256), {})
        with pytest.raises(Bad, match="the disk is full"):
            stores.write(tmp_path / "run.json", "x" * 200_000)
        assert [f for f in files(tmp_path) if f.startswith("steps/")] == [
            "steps/small", "steps/small/data", *(f"steps/small/data/{n}" for n in ("hash", "tensors.safetensors", "tree.json")), "steps/small/done.json",
        ]  # fmt: skip
        assert not [f for f in files(tmp_path) if "part" in f] and not (tmp_path / "run.json").exists()
        assert list(store.get("small").text()) == ["a"]
    finally:
        subprocess.run(["umount", "-l", tmp_path], check=True)


def test_the_two_newest_checkpoints_are_kept_and_forgotten(tmp_path):
    saver = Checkpoints(tmp_path / "c", 0.0)
    for t in (1, 2, 10):
        assert saver.due()
        state = torch.full((2,), float(t))
        saver.save(lambda t=t, x=state: {"t": t, "x": x})
        state += 100  # the training goes on while the copy is written
    saver.last_good()
    assert [p.name for p in saver._found()] == ["step-0000000002", "step-0000000010"]
    assert saver.newest("cpu")["x"].tolist() == [10, 10]
    (saver._found()[-1] / "hash").write_text("")
    with pytest.warns(UserWarning, match="step-0000000010 cannot be read"):
        assert saver.newest("cpu")["t"] == 2
    assert not Checkpoints(tmp_path / "d", 1e9).due() and not Checkpoints(None, 0.0).due()
    Checkpoints(None, 0.0).save(lambda: {"t": 1})
    assert not (tmp_path / "d").exists() and Checkpoints(None, 0.0).newest("cpu") is None


def test_what_a_killed_writer_left_is_put_in_order(tmp_path):
    folder = tmp_path / "c"
    for name in (
        "step-0000000004",
        ".step-0000000005.77.part",
        ".step-0000000006.77.old.part",
        ".step-0000000004.7.old.part",
    ):
        save_tree({"t": name}, folder / name)
    with Checkpoints(folder, 0.0) as saver:
        assert [p.name for p in folder.iterdir() if p.name[0] == "."] == []
        assert saver.newest("cpu")["t"] == ".step-0000000006.77.old.part"  # its successor was never put in its place
        assert load_tree(folder / "step-0000000004")["t"] == "step-0000000004"


def test_tensors_beside_an_accelerator_stay_beside_it(tmp_path):
    """As in a training on one: weights there, a part's table of rows here. `meta` stands for the device."""
    away = torch.ones(2)
    away.home = "cuda"  # what a checkpoint's copy of a tensor remembers
    save_tree({"weight": away, "table": torch.ones(3)}, tmp_path / "a")
    back = load_tree(tmp_path / "a", "meta")
    assert back["weight"].device.type == "meta" and back["table"].device.type == "cpu"
    save_tree({"weight": torch.ones(2), "table": torch.ones(3)}, tmp_path / "b")  # of a training on the processor
    assert {v.device.type for v in load_tree(tmp_path / "b", "meta").values()} == {"meta"}


def test_a_copy_for_a_checkpoint_is_made_where_there_is_room(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 100)
    tree = {"big": torch.ones(30, device="meta"), "table": [torch.ones(2)]}
    with pytest.raises(NotImplementedError):  # to memory, which `meta` cannot do
        trees.set_aside(tree)
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    aside = trees.set_aside(tree)
    assert aside["big"].device.type == "meta" and aside["table"][0] is not tree["table"][0]
    aside["table"][0].home = "meta"
    kept = trees.set_aside(aside)
    assert kept["table"][0].home == "meta" and trees.brought_back(kept)["table"][0].device.type == "meta"


@pytest.mark.parametrize("what", ["data", "columns", "model", "report"])
def test_a_finished_step_that_cannot_be_read_is_forgotten(what, tmp_path):
    noun = {"model": preset("mlp"), "report": Report.of("x", [1.0])}.get(what, Data.of({"n": np.arange(1000)}))
    store = Store(tmp_path)
    store.put("k", noun, {})
    file = next((tmp_path / "columns").iterdir()) if what == "columns" else next(tmp_path.rglob("tree.json"))
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(Bad, match="is forgotten: `trainlore resume` makes it anew"):
        store.get("k")
    assert not store.has("k")
    store.put("k", noun, {})
    store.get("k")


def test_the_ledger_knows_every_run_and_stops_none(tmp_path, monkeypatch):
    stores.enter(tmp_path, tmp_path / "a", "one", "running")
    stores.enter(tmp_path, tmp_path / "a", "one", "finished", {"steps": 2})
    stores.enter(tmp_path, tmp_path / "b", "two", "running")
    rows = (
        sqlite3.connect(tmp_path / "ledger.sqlite")
        .execute("select folder, name, started, ended, state, summary from runs")
        .fetchall()
    )
    assert [(r[0], r[1], r[4]) for r in rows] == [("a", "one", "finished"), ("b", "two", "running")]
    assert rows[0][2] <= rows[0][3] and rows[1][3] is None and json.loads(rows[0][5]) == {"steps": 2}

    def broken(root):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(stores, "ledger", broken)
    stores.enter(tmp_path, tmp_path / "c", "three", "finished")
