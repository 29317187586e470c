"""Passes over rows a block at a time, here and on a Ray of this machine: the same rows and scores as in one piece."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainlore import cluster, runs, single
from trainlore.errors import Bad
from trainlore.methods.data.select.dsir import DSIR
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import world

SRC = Path(__file__).parents[2] / "src"


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(runs, "BLOCK", 70)


@pytest.fixture(scope="module")
def on_ray():
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SRC))  # its processes find the package
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield
        ray.shutdown()


def shuffled(data):
    return data.take(np.random.default_rng(0).permutation(150))


ASKED = [lambda batch, out: per_row(rowwise("causal", batch, out), batch, "causal"), lambda batch, out: batch["row"]]


def test_blocks_give_what_one_piece_gives(monkeypatch):
    nouns = world("text")
    rows = shuffled(nouns["data"])
    whole = Run(0).infer(nouns["model"], rows, ASKED), Run(0).embed(nouns["model"], rows)
    monkeypatch.setattr(runs, "BLOCK", 70)
    seen = list(Run(0).blocks(rows, lambda some, first: (first, some.columns, some.ids.tolist()), ["text"]))
    assert [(first, len(ids)) for first, _, ids in seen] == [(0, 70), (70, 70), (140, 10)]
    assert sum((ids for _, _, ids in seen), []) == rows.ids.tolist() and all(c == ["text"] for _, c, _ in seen)
    blocks = Run(0).infer(nouns["model"], rows, ASKED), Run(0).embed(nouns["model"], rows)
    assert blocks[0][1].tolist() == list(range(150)) == whole[0][1].tolist()
    assert torch.allclose(blocks[0][0], whole[0][0], atol=1e-5) and torch.allclose(blocks[1], whole[1], atol=1e-5)
    with pytest.raises(Bad, match="no column 'body'"):
        list(Run(0).blocks(rows, lambda some, first: 0, ["body"]))


def test_a_pass_on_ray_gives_the_same_scores_and_the_same_bill(small_blocks, on_ray):
    nouns = world("text")
    model, rows = nouns["model"], shuffled(nouns["data"])
    here, there = Run(0), Run(0, on="ray")
    assert there.away(rows) and not here.away(rows) and not there.away(rows.take(range(70)))
    want, found = here.infer(model, rows, ASKED), there.infer(model, rows, ASKED)
    assert torch.allclose(want[0], found[0], atol=1e-5) and len(set(want[0].tolist())) > 100
    assert found[1].tolist() == list(range(150))
    bills = [{k: v for k, v in run.meter.state().items() if k not in ("seconds", "peak")} for run in (here, there)]
    assert bills[0] == bills[1] and bills[0]["forward"] > 0


@pytest.mark.slow
def test_hashing_on_ray_keeps_the_same_rows(small_blocks, on_ray):
    nouns = world("text")
    pick = DSIR(target=nouns["target"], keep=0.25, min_words=0)
    want, found = (pick(Run(3, on=on), nouns["data"]) for on in ("local", "ray"))
    assert found.ids.tolist() == want.ids.tolist() and found["dsir"].tolist() == want["dsir"].tolist()


def test_one_step_on_files_writes_the_same_file(small_blocks, on_ray, tmp_path):
    texts = [f"{i % 60} apples lie in the large basket number {i % 60} of the shop" for i in range(150)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in texts))
    for on in ("local", "ray"):
        to = tmp_path / f"{on}.jsonl"
        single.do("near_duplicates", str(tmp_path / "rows.jsonl"), None, to, [], 0, False, on)
    kept = [(tmp_path / f"{on}.jsonl").read_text() for on in ("local", "ray")]
    assert kept[0] == kept[1] and kept[0].count("\n") == 60


@pytest.mark.slow
def test_a_mistake_in_a_row_is_told_as_it_is_here(small_blocks, on_ray):
    rows = Data.of([*["a few words"] * 100, "word " * 5000])
    for on in ("local", "ray"):
        with pytest.raises(Bad, match="row 100 has"):
            Run(0, on=on).infer(world("text")["model"], rows, lambda batch, out: out[:, 0, 0], truncate=False)


def test_elsewhere_is_refused():
    with pytest.raises(Bad, match="--on is local or ray, not 'moon'"):
        cluster.check("moon")
