"""Several processes: the same batches and, to rounding, the same weights as one; whole models at the end; honest refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from processes import parts_together
from processes.shards import trained
from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.recipe import read
from trainlore.registry import index, load
from trainlore.team import Team, together
from trainlore.verbs import Part, method

HERE = Path(__file__).parent.parent / "processes"
TOGETHER = (  # parts of every slot that is shared out: odds, draw, batch, forward, loss, penalty, gradient, rate, update, watch
    *(
        "curriculum",
        "hard_batches",
        "replay",
        "mixup",
        "uda",
        "kd",
        "label_smoothing",
        "ewc",
        "sam",
        "clip",
        "wsd",
        "granet",
    ),
    *("half_fine_tuning", "ema", "dpo", "rs2", "block_movement", "lora"),
)


def torchrun(script: str, *arguments: str, processes: int = 2) -> None:
    where = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run([*start, *arguments] if not script else [*start, str(HERE / script), *arguments], env=where, capture_output=True, text=True, timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("two") / "parts.pt"
    torchrun("parts_together.py", str(out), "6", "8", *TOGETHER, "fast_ibp")
    return torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", TOGETHER)
def test_two_processes_give_the_weights_of_one(found, name):
    model, run = parts_together.trained(name, 6, 8)
    for key, value in found[name]["weights"].items():
        torch.testing.assert_close(value, model.net.state_dict()[key], rtol=1e-3, atol=2e-5)
    assert found[name]["work"] == pytest.approx(run.meter.work, rel=0.01)  # shared out, not done twice


@pytest.mark.slow
def test_every_part_gives_the_weights_of_one_process_or_says_that_it_cannot(tmp_path):
    names = [name for name, entry in sorted(index().items()) if entry["kind"] == "Part"]
    torchrun("parts_together.py", str(tmp_path / "all.pt"), "6", "8", *names)
    found = torch.load(tmp_path / "all.pt", weights_only=True)
    agreed = [name for name in names if "refused" not in found[name]]
    assert len(agreed) > 40 and all("one process only" in found[n]["refused"] for n in names if n not in agreed)
    for name in agreed:
        model, _ = parts_together.trained(name, 6, 8)
        for key, value in found[name][
            "weights"
        ].items():  # Adam makes a step of a rounding error where a gradient is none
            torch.testing.assert_close(value, model.net.state_dict()[key], rtol=1e-3, atol=5e-4, msg=f"{name} {key}")


def test_parts_that_must_be_alone_say_so_before_anything_runs(found):
    assert "one process only" in found["fast_ibp"]["refused"]

    @method(name="whole_batch", title="", family="x", year=0, status="draft")
    class WholeBatch(Part):
        rowwise = False

    @method(name="own_gradient", title="", family="x", year=0, status="draft")
    class OwnGradient(Part):
        def gradient(self, loop, s):
            raise AssertionError

    team = Team()
    team.size = 2
    for part in (WholeBatch(), OwnGradient()):
        with pytest.raises(Bad, match="one process only"):
            together([part], team)
    with pytest.raises(Bad, match="cannot be shared"):
        team.share({"row": torch.arange(1)})


def test_a_steps_own_instrument_that_must_be_alone_is_known_by_its_step():
    from trainlore.methods.data.select.influence_scores import _Remember

    team = Team()
    team.size = 2
    with pytest.raises(Bad, match="influence_scores runs on one process only: it remembers"):
        together([_Remember(looks=1, seen={})], team)
    with pytest.raises(Bad, match="mcmi_teacher runs on one process only"):
        together([load("mcmi_teacher")()], team)


def test_shares_are_the_batch_and_no_row_twice():
    batch = {"row": torch.arange(7), "x": torch.randn(7, 3), "table": torch.randn(4)}
    shares = []
    for rank in range(3):
        team = Team()
        team.rank, team.size = rank, 3
        shares.append(team.share(batch))
    assert torch.equal(torch.cat([s["row"] for s in shares]), batch["row"])
    assert torch.equal(torch.cat([s["x"] for s in shares]), batch["x"])
    assert all(torch.equal(s["table"], batch["table"]) for s in shares)


def test_weights_shared_out_come_back_whole_and_resume_at_any_number_of_processes(tmp_path):
    trained(until=4, folder=tmp_path / "of_one")
    torchrun("shards.py", str(tmp_path))
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    alone = trained(shard=False).net.state_dict()
    assert found["whole"]["weights"].keys() == alone.keys() and found["whole"]["tied"]
    for key, value in alone.items():
        torch.testing.assert_close(found["whole"]["weights"][key], value, rtol=1e-3, atol=2e-5)
        for other in ("resumed", "watched", "roomy"):
            assert torch.equal(found[other]["weights"][key], found["whole"]["weights"][key])
        torch.testing.assert_close(found["of_one"]["weights"][key], value, rtol=1e-3, atol=2e-5)
    assert found["half"]["finite"]
    assert "would need about" in found["foreseen"] and "for what 4 rows keep" in found["foreseen"]
    assert "sam reaches for whole weights" in found["refused"]
    files = [p.suffix for p in (tmp_path / "for_others").rglob("*") if p.is_file()]
    assert ".safetensors" in files and not {".pt", ".bin", ".pkl", ".distcp"} & set(files)
    for key, value in trained(folder=tmp_path / "for_others").net.state_dict().items():  # one process goes on
        torch.testing.assert_close(value, alone[key], rtol=1e-3, atol=2e-5)


def test_rows_that_come_out_different_end_the_run(tmp_path):
    """Each process has chosen rows of its own: their batches would no longer be the same."""
    torchrun("differ.py", str(tmp_path))
    assert (
        tmp_path / "said"
    ).read_text() == "step 1 (random_rows): random_rows came out different on 2 processes: run this step on one"


RECIPE = """
name: two
seed: 3
given: {pool: world:digits/noisy, test: world:digits/test, net: {model: mlp, width: 32}}
steps:
  - train: {model: $net, data: $pool, steps: 60, lr: 1e-2, precision: fp32, as: judge}
  - el2n: {data: $pool, proxies: [$judge], keep: 0.8, as: kept}
  - train: {model: $net, data: $kept, steps: 60, lr: 1e-2, precision: fp32, as: grown, with: [{ema: {decay: 0.9}}]}
  - accuracy: {model: $grown, data: $test}
"""


def test_a_recipe_runs_on_two_processes_as_on_one(tmp_path):
    (tmp_path / "two.yaml").write_text(RECIPE)
    execute(read(str(tmp_path / "two.yaml")), tmp_path / "1" / "run")
    torchrun("", "-m", "trainlore", "run", str(tmp_path / "two.yaml"), "--out", str(tmp_path / "2" / "run"), "-q")
    one, two = (json.loads((tmp_path / f"{n}/run/run.json").read_text())["steps"] for n in (1, 2))
    assert [s["name"] for s in two] == [s["name"] for s in one] and len(two) == 4
    assert two[1]["data"]["rows"] == one[1]["data"]["rows"]
    assert two[2]["work"] == pytest.approx(one[2]["work"], rel=0.01)  # shared out
    curves = [s[2]["curve"]["loss"] for s in (one, two)]
    assert curves[1] == pytest.approx(curves[0], rel=1e-3) and len(curves[0]) == 60
    assert (tmp_path / "2/run/report.html").exists()
