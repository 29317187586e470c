"""The loop against the same training written by hand, and what it promises of budgets, pieces, resuming and failing."""

import json
import time

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.progress import Curve
from trainlore.registry import load
from trainlore.runs import Run
from trainlore.slots import Clash
from trainlore.spikes import Diverged
from trainlore.trees import load_tree, save_tree
from trainlore.verbs import Part, method
from trainlore.worlds import tiny

HOW = tiny.HOW["digits"]


@method(name="spy", title="", family="x", year=0, status="draft")
class Spy(Part):
    seen: list

    def batch(self, loop, s, batch):
        self.seen.append(batch["row"].tolist())
        return batch


@method(name="mine", title="", family="x", year=0, status="draft")
class Mine(Part):
    def loss(self, loop, s, batch, out):
        return out.sum(-1)


@method(name="yours", title="", family="x", year=0, status="draft")
class Yours(Part):
    def loss(self, loop, s, batch, out):
        return out.sum(-1)


@method(name="idle", title="", family="x", year=0, status="draft")
class Idle(Part):
    def loss(self, loop, s, batch, out, inner):
        return inner(batch, out)


def weights(model):
    return {k: v.clone() for k, v in model.net.state_dict().items()}


def test_it_is_the_training_one_would_write_by_hand():
    w = tiny.world("digits")
    x, y = torch.tensor(w["data"]["features"]), torch.tensor(w["data"]["label"])
    seen = []
    ours = Run(5).fit(w["model"].copy(), w["data"], Spy(seen=seen), steps=30, **HOW)
    net = w["model"].copy().net
    adam = torch.optim.AdamW(net.parameters(), lr=HOW["lr"], betas=(0.9, 0.95), weight_decay=0.0)
    for rows in seen:
        adam.zero_grad()
        F.cross_entropy(net(x[rows]), y[rows]).backward()
        adam.step()
    theirs = net.state_dict()
    assert all(torch.allclose(v, theirs[k], atol=1e-5) for k, v in weights(ours).items())


def test_an_epoch_shows_every_row_once():
    w, seen = tiny.world("digits"), []
    Run(1).fit(w["model"], w["data"], Spy(seen=seen), epochs=2, **{**HOW, "batch_size": 50})
    assert len(seen) == 16
    assert sorted(sum(seen[:8], [])) == list(range(400)) == sorted(sum(seen[8:], []))
    assert seen[:8] != seen[8:]


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_pieces_give_the_gradient_of_the_whole_with_ragged_rows(micro):
    found = []
    for size in (None, micro):
        w = tiny.world("text")
        w["data"] = w["data"].with_(weight=np.linspace(0.5, 2, len(w["data"])).astype(np.float32))
        model = Run(0).fit(w["model"], w["data"], steps=1, micro_batch=size, **{**tiny.HOW["text"], "lr": 1.0})
        found.append(weights(model))
    grads = [v for k, v in found[0].items()]
    assert (
        max(float((a - b).abs().max()) for a, b in zip(grads, found[1].values(), strict=True)) < 2e-2
    )  # Adam divides by |g|


@method(name="catch", title="", family="x", year=0, status="draft")
class Catch(Part):
    """Keeps every weight's gradient of every step."""

    grads: list

    def gradient(self, loop, s, inner):
        inner()
        self.grads.append({n: p.grad.clone() for n, p in loop.model.net.named_parameters()})


@pytest.mark.parametrize("rows", ["ragged", "masked", "packed", "weighted", "classes", "weighted classes"])
def test_one_two_and_eight_pieces_of_32_rows_have_the_same_gradient(rows):
    found = []
    for micro in (32, 16, 4):
        w, grads = tiny.world("digits" if "classes" in rows else "text"), []
        data, g = w["data"], np.random.default_rng(0)
        if rows == "masked":  # most answers count, some rows hardly
            labels = [np.where(g.random(len(r)) < g.random(), -100, r.as_py()) for r in data["labels"]]
            data = data.with_(labels=pa.array([r.tolist() for r in labels]))
        elif rows == "packed":
            data = Run(0).step(load("best_fit_packing")(length=48), data)
        elif "weighted" in rows:
            data = data.with_(weight=g.random(len(data)).astype(np.float32))
        Run(0).fit(w["model"], data, Catch(grads=grads), steps=1, batch_size=32, micro_batch=micro, precision="fp32")
        found.append(grads[0])
    for pieces in found[1:]:
        for name, whole in found[0].items():
            torch.testing.assert_close(pieces[name], whole, rtol=0, atol=1e-6)


def test_packed_documents_do_not_see_each_other():
    w = tiny.world("text")
    a, b = ([int(t) for t in w["data"]["input_ids"][i].as_py()[:12]] for i in (0, 1))
    packed = Data.of(
        {
            "input_ids": [a + b],
            "labels": [a + b],
            "segment_ids": [[0] * 12 + [1] * 12],
            "position_ids": [[*range(12), *range(12)]],
        }
    )
    alone = Data.of({"input_ids": [b], "labels": [b]})
    both, one = packed.batch([0], w["model"]), alone.batch([0], w["model"])
    with torch.no_grad():
        together, apart = w["model"](both)[0, 12:24], w["model"](one)[0, :12]
    assert torch.allclose(together, apart, atol=1e-5)


def test_budgets_are_understood_and_one_is_needed():
    w = tiny.world("digits")
    how = {**HOW, "batch_size": 40}
    assert len(Run().fit(w["model"].copy(), w["data"], rows=400, **how).about["curve"]["t"]) == 10
    assert len(Run().fit(w["model"].copy(), w["data"], epochs=0.5, **how).about["curve"]["t"]) == 5
    run = Run()
    run.fit(w["model"].copy(), w["data"], work=1e7, **how)
    assert 1e7 <= run.meter.work < 1.3e7
    t = tiny.world("text")
    run = Run()
    run.fit(t["model"], t["data"], tokens="2k", **tiny.HOW["text"])
    assert 1200 < run.meter.tokens < 4000
    for bad in ({}, {"steps": 1, "epochs": 1}, {"steps": 0}, {"tokens": "lots"}):
        with pytest.raises(Bad, match="budget|above 0|amount"):
            Run().fit(w["model"], w["data"], **bad, **HOW)


def test_budgets_of_work_and_seconds_go_on_where_they_were(tmp_path):
    """The rate follows the share of the budget that is spent: it is the same after an interruption."""
    w, part = tiny.world("digits"), load("wsd")(warmup=0.3, decay=0.5)
    fit = lambda **how: Run(1).fit(w["model"].copy(), w["data"], part, **HOW, **how)
    whole = fit(work=2e7)
    for until in (len(whole.about["curve"]["t"]) // 2, None):
        again = fit(work=2e7, until=until, folder=tmp_path / "work")
    assert again.fingerprint == whole.fingerprint and again.about["curve"] == whole.about["curve"]
    fit(seconds=1000, until=3, folder=tmp_path / "s")
    saved = load_tree(tmp_path / "s" / "step-0000000003")
    assert 0 < saved["seconds"] < 1000
    save_tree({**saved, "seconds": 995.0, "spent": 0.995}, tmp_path / "s" / "step-0000000003")
    start = time.monotonic()
    fit(seconds=997, folder=tmp_path / "s")
    assert time.monotonic() - start < 60  # two seconds were left


def test_a_training_whose_steps_are_not_known_beforehand_is_logged(tmp_path):
    w = tiny.world("digits")
    Run(1, tmp_path).fit(w["model"], w["data"], work=2e7, **HOW)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) > 3 and [line["t"] for line in lines] == list(range(1, len(lines) + 1))


def test_a_curve_stays_short_and_comes_back():
    whole, stopped = Curve(10), Curve(10)
    for t in range(1, 201):
        whole.add(t, 1 / t, 1.0)
        stopped.add(t, 1 / t, 1.0)
        if t % 7 == 0:
            again = Curve(10)
            again.restore(json.loads(json.dumps(stopped.state())))
            stopped = again
        assert len(whole.points["t"]) <= 20
    assert whole.points == stopped.points and whole.points["t"][:3] == [1, 17, 33]
    assert all(loss == 1 / t for t, loss in zip(whole.points["t"], whole.points["loss"], strict=True))
    short = Curve(10)
    assert all(short.add(t, 0.0, 1.0) for t in range(1, 21)) and short.thin()["t"] == list(range(1, 21, 2))


def test_one_number_for_a_piece_is_refused():
    @method(name="lump", title="", family="x", year=0, status="draft")
    class Lump(Part):
        def loss(self, loop, s, batch, out, inner):
            return inner(batch, out).mean()

    w = tiny.world("digits")
    Run().fit(w["model"].copy(), w["data"], Lump(), steps=1, **HOW)
    with pytest.raises(Bad, match="rowwise = False"):
        Run().fit(w["model"], w["data"], Lump(), steps=1, micro_batch=4, **HOW)


def test_a_loss_that_is_no_number_stops_and_names_the_rows():
    w = tiny.world("digits")
    x = w["data"]["features"].copy()
    x[7] = np.inf
    bad = w["data"].with_(features=x)
    before = weights(w["model"])
    with pytest.raises(Diverged, match=r"step 1, on rows \[.*\b7\b"):
        Run().fit(w["model"], bad, steps=2, **{**HOW, "batch_size": 400})
    assert all(torch.equal(v, before[k]) for k, v in weights(w["model"]).items())


def test_clashes_are_found_before_anything_runs():
    w = tiny.world("digits")
    with pytest.raises(Clash, match="Mine and Yours both own `loss`"):
        Run().fit(w["model"], w["data"], Mine(), Yours(), steps=1)
    with pytest.raises(TypeError, match="is not a slot"):
        type("Typo", (Part,), {"losss": lambda self, loop, s: None})


def test_a_part_that_does_nothing_is_found_dead():
    w, run = tiny.world("digits"), Run()
    run.fit(w["model"], w["data"], Idle(), steps=3, **HOW)
    assert run.effects[0]["dead"]


def test_parts_do_not_move_the_randomness_of_others():
    from trainlore.registry import load

    rows = []
    for extra in ((), (load("label_smoothing")(),), (load("sam")(), load("ema")())):
        w, seen = tiny.world("digits"), []
        Run(2).fit(w["model"], w["data"], Spy(seen=seen), *extra, steps=4, **HOW)
        rows.append(seen)
    assert rows[0] == rows[1] == rows[2]


def test_damaged_checkpoints_are_passed_over(tmp_path):
    w = tiny.world("digits")
    whole = Run(4).fit(w["model"].copy(), w["data"], steps=12, **HOW)
    for until in (4, 8):
        Run(4).fit(w["model"].copy(), w["data"], steps=12, until=until, folder=tmp_path, **HOW)
    newest = sorted(tmp_path.glob("step-*"))[-1] / "tensors.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-5] ^= 255
    newest.write_bytes(raw)
    with pytest.warns(UserWarning, match="damaged"):
        again = Run(4).fit(w["model"].copy(), w["data"], steps=12, folder=tmp_path, **HOW)
    assert again.fingerprint == whole.fingerprint


def test_extra_passes_are_paid_for():
    from trainlore.registry import load

    bills = []
    for parts in ((), (load("sam")(rho=0.05),)):
        w, run = tiny.world("digits"), Run()
        run.fit(w["model"], w["data"], *parts, steps=4, **HOW)
        bills.append(run.meter.work)
    assert bills[1] == 2 * bills[0]
    net = preset("mlp")
    per_row = 2 * sum(m.weight.numel() for m in net.net.modules() if isinstance(m, torch.nn.Linear))
    run = Run()
    run.fit(net, tiny.world("digits")["data"], steps=1, **HOW)
    assert run.meter.forward == per_row * 32
    assert run.meter.backward == 2 * run.meter.forward


def test_a_trace_of_five_steps_is_written(tmp_path):
    w = tiny.world("digits")
    whole = Run(1).fit(w["model"].copy(), w["data"], steps=12, **HOW)
    traced = Run(1, tmp_path, profile=True).fit(w["model"].copy(), w["data"], steps=12, **HOW)
    assert traced.fingerprint == whole.fingerprint
    events = json.loads((tmp_path / "profile-train.json").read_text())["traceEvents"]
    assert sum(e.get("name", "").startswith("ProfilerStep") for e in events) >= 5
    assert "aten::addmm" in (tmp_path / "profile-train.txt").read_text()
