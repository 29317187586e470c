"""Precision, compiling, batches made ahead, spikes and memory: each changes how a training runs, not what it learns."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import torch
import transformers

from trainlore import memory, placement
from trainlore.errors import Bad
from trainlore.feeding import Ahead
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.registry import load
from trainlore.runs import Run
from trainlore.spikes import Diverged, Guard
from trainlore.trees import load_tree, save_tree
from trainlore.verbs import Part, method
from trainlore.worlds import tiny

HOW = {**tiny.HOW["digits"], "precision": "fp32"}


def text(rows=48, long=32):
    g = np.random.default_rng(0)
    ids = [g.integers(2, 256, size=long - i % 7).tolist() for i in range(rows)]
    return Data.of({"input_ids": ids, "labels": ids})


def trained(seed=1, model=None, data=None, *parts, **how):
    model = model or preset("llama-1m", vocab=256, window=32, num_hidden_layers=2)
    run = Run(seed)
    run.fit(model, data or text(), *parts, **{"steps": 6, "batch_size": 8, "precision": "fp32", **how})
    return model, run


def far(a, b):
    return max(
        float((x.float() - y.float()).abs().max())
        for x, y in zip(a.net.state_dict().values(), b.net.state_dict().values(), strict=True)
    )


@pytest.fixture(scope="module")
def plain():
    return trained()


def test_batches_made_ahead_are_the_same_batches(plain):
    assert far(plain[0], trained(workers=2)[0]) == 0


def test_recomputed_activations_give_the_same_weights(plain):
    other, _ = trained(checkpoint_activations=True)
    assert far(plain[0], other) < 1e-6
    assert not getattr(other.net, "is_gradient_checkpointing", False)
    gpt2 = lambda: Model.of(  # whose dropout draws the same numbers when it is computed again
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=256, n_positions=32, n_embd=16, n_layer=2, n_head=2, attn_pdrop=0.3)
        )
    )
    with Run(0).global_rng("weights"):
        first = gpt2()
    again, _ = trained(model=first.copy(), checkpoint_activations=True)
    assert far(trained(model=first)[0], again) < 1e-6
    with pytest.raises(Bad, match="checkpoint_activations"):
        w = tiny.world("digits")
        Run().fit(w["model"], w["data"], steps=1, checkpoint_activations=True, **HOW)


def test_compiled_blocks_give_the_same_weights_and_the_same_bill(plain):
    other, run = trained(compile="aot_eager")
    assert far(plain[0], other) < 1e-5
    assert run.meter.work == plain[1].meter.work
    assert other.about["compiled"] == {"backend": "aot_eager", "pieces": 2, "outside": []}
    assert torch._dynamo.utils.counters["frames"]["ok"] >= 1
    assert all(m._compiled_call_impl is None for m in other.net.modules())
    with pytest.raises(Bad, match="no backend"):
        trained(compile="fast")


def test_what_falls_out_of_a_graph_is_named():
    part = load("block_movement")(**{k: v for k, v in load("block_movement").tiny.items() if k != "world"})
    w = tiny.world("digits")
    told = Run(1).fit(w["model"], w["data"], part, steps=2, compile="aot_eager", **HOW).about["compiled"]
    assert told["outside"] and all(why.startswith("block_movement (") for why in told["outside"])
    w["model"] = Run(1).fit(w["model"], w["data"], steps=1, **HOW)
    assert "compiled" not in w["model"].about  # that training was not


def test_fp16_scales_its_loss_and_passes_overflows_over(plain):
    other, _ = trained(precision="fp16")
    assert 0 < far(plain[0], other) < 0.02
    scale = placement.Scale(torch.float16)
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.full((3,), 2.0) * scale.factor
    scale.undo([weight])
    assert weight.grad.tolist() == [2.0] * 3 and scale.sound([weight])
    weight.grad[1] = torch.inf
    before = scale.factor
    assert not scale.sound([weight]) and scale.factor == before / 2
    weight.grad[1] = 1.0
    scale.good = 1999
    assert scale.sound([weight]) and scale.factor == before


def test_fp16_goes_on_to_the_same_bits_and_an_overflow_is_no_blow_up(tmp_path, monkeypatch):
    plain = placement.Scale.__init__

    def high(self, kind):
        plain(self, kind)
        self.factor *= 2.0**10  # so that the first steps overflow

    monkeypatch.setattr(placement.Scale, "__init__", high)
    how = {"precision": "fp16", "spikes": "stop", "steps": 30}
    whole, _ = trained(**how)
    before, _ = trained(until=20, folder=tmp_path, **how)
    after, _ = trained(folder=tmp_path, **how)
    assert after.fingerprint == whole.fingerprint != before.fingerprint
    saved = load_tree(sorted(tmp_path.glob("step-*"))[-1])
    assert saved["scale"]["factor"] < 2.0**24 and 0 < saved["scale"]["good"] < 20


def test_precision_is_known_or_refused():
    with pytest.raises(Bad, match="precision"):
        trained(precision="int8", steps=1)
    assert placement.chosen_precision("bf16", torch.device("cpu")) is torch.bfloat16


@method(name="poisoned", title="", family="x", year=0, status="draft")
class Poisoned(Part):
    """Rows whose loss leaps, as broken rows' do."""

    rows: tuple
    by: float

    def loss(self, loop, s, batch, out, inner):
        bad = torch.isin(batch["row"], torch.tensor(self.rows))
        return inner(batch, out) * torch.where(bad, self.by, 1.0)


def test_a_leap_is_stopped_or_gone_back_from_and_its_rows_are_kept(tmp_path):
    w = tiny.world("digits")
    rows = (5,)
    how = {**HOW, "steps": 60, "batch_size": 16}
    with pytest.raises(Diverged, match="leapt"):
        Run(2).fit(w["model"].copy(), w["data"], Poisoned(rows=rows, by=1e6), spikes="stop", **how)
    run = Run(2, tmp_path)
    healed = run.fit(w["model"].copy(), w["data"], Poisoned(rows=rows, by=1e6), spikes="roll_back", **how)
    lines = [json.loads(line) for line in (tmp_path / "spikes.jsonl").read_text().splitlines()]
    assert lines and all(5 in line["rows"] and len(line["rows"]) == 16 for line in lines)
    assert {line["then"] for line in lines} == {"passed over"}
    spoilt = Run(2).fit(w["model"].copy(), w["data"], Poisoned(rows=rows, by=1e6), **how)
    judge = lambda m: float(Run().infer(m, w["test"], lambda b, out: out.argmax(-1) == b["labels"]).float().mean())
    assert judge(healed) > judge(spoilt)
    whole = Run(2).fit(w["model"].copy(), w["data"], spikes="roll_back", **how)
    assert far(whole, Run(2).fit(w["model"].copy(), w["data"], **how)) == 0


def test_a_run_gone_on_with_can_go_back_to_before_it_was_stopped(tmp_path):
    w, row = tiny.world("digits"), 5
    how = {**HOW, "steps": 90, "batch_size": 16, "spikes": "roll_back"}
    part = Poisoned(rows=(row,), by=1e6)
    whole = Run(2, tmp_path).fit(w["model"].copy(), w["data"], part, **how)
    line = json.loads((tmp_path / "spikes.jsonl").read_text().splitlines()[0])
    assert line["t"] % 50 > 3  # not where a state is held anyway
    for until in (line["t"] - 2, None):
        again = Run(2).fit(w["model"].copy(), w["data"], part, until=until, folder=tmp_path / "c", **how)
    assert far(again, whole) == 0


def test_rows_that_stop_a_training_are_kept_with_the_last_good_weights(tmp_path):
    w = tiny.world("digits")
    x = w["data"]["features"].copy()
    x[7] = np.inf
    bad, how = w["data"].with_(features=x), {**HOW, "batch_size": 400, "steps": 4}
    Run().fit(w["model"].copy(), w["data"], until=2, folder=tmp_path / "c", **how)
    spoilt = load_tree(tmp_path / "c" / "step-0000000002")
    next(iter(spoilt["net"].values()))[0] = torch.nan
    save_tree({**spoilt, "t": 3}, tmp_path / "c" / "step-0000000003")
    with pytest.raises(Diverged, match="the last good weights are in .*step-0000000002"):
        Run(0, tmp_path).fit(w["model"].copy(), bad, folder=tmp_path / "c", **how)
    line = json.loads((tmp_path / "spikes.jsonl").read_text())
    assert line["then"] == "stopped" and 7 in line["rows"] and line["t"] == 4


def test_going_back_ends_somewhere():
    w = tiny.world("digits")
    with pytest.raises(Diverged, match="passed over before"):
        Run(2).fit(
            w["model"],
            w["data"],
            Poisoned(rows=tuple(range(400)), by=float("nan")),
            spikes="roll_back",
            steps=40,
            **HOW,
        )
    with pytest.raises(Bad, match="spikes"):
        Guard("perhaps", None)
    guard = Guard("roll_back", None)
    guard.hold(200, lambda: {"t": 200, "guard": guard.state()})
    for t in (*range(12), *range(210, 220)):  # those of long ago are no sign that it is lost now
        guard.act(t, "the loss leapt", [1], lambda: None)
    with pytest.raises(Diverged, match="10 batches were passed over before"):
        guard.act(220, "the loss leapt", [1], lambda: None)


def small():
    return preset("llama-1m", vocab=256, window=32, num_hidden_layers=2)


def test_a_step_that_cannot_fit_is_refused_with_the_ways_out(monkeypatch):
    how = {"steps": 1, "batch_size": 8, "precision": "fp32"}
    weights = 12 * small().size
    monkeypatch.setattr(memory, "available", lambda device: weights + (1 << 18))
    with pytest.raises(Bad, match=r"would need about .* micro_batch: 2 .*checkpoint_activations.*bf16"):
        Run().fit(small(), text(), **how)
    smoothing = load("label_smoothing")(amount=0.1)
    with pytest.warns(UserWarning, match="may need about .* what 8 rows keep"):  # a part's loss is not ours to foresee
        Run().fit(small(), text(), smoothing, **how)
    monkeypatch.setattr(memory, "available", lambda device: weights // 2)
    with pytest.raises(Bad, match=r"adapters .*; shard: true .*; micro_batch: 2"):  # smaller pieces alone would not do
        Run().fit(small(), text(), **how)


def test_ways_out_are_those_that_the_network_has():
    settings = memory.Settings(None, False, torch.float32)
    mlp = memory.ways_out(tiny.world("digits")["model"], 32, settings)
    assert "checkpoint_activations" not in mlp and "window" not in mlp and mlp.count(";") == 2
    whole = memory.Settings(None, True, torch.bfloat16, whole=True)
    assert memory.ways_out(small(), 32, whole).startswith("batch_size: 8; adapters")


@pytest.mark.parametrize("slot", ["loss", "update"])
def test_memory_that_ends_is_told_wherever_in_the_step(slot):
    def fail(*args, **how):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    inner = {"loss": lambda self, loop, s, batch, out, inner: fail(), "update": lambda self, loop, s, inner: fail()}
    made = method(name="hungry", title="", family="x", year=0, status="draft")(type("H", (Part,), {slot: inner[slot]}))
    w = tiny.world("digits")
    with pytest.raises(Bad, match=r"memory ran out at step 1 on cpu: .* GB were held .* micro_batch: 8"):
        Run().fit(w["model"], w["data"], made(), steps=2, **HOW)


def test_what_a_step_needs_is_about_what_it_takes():
    """The prediction lies within a factor of two of what autograd really holds at the end of the forward pass."""
    model, data = preset("llama-1m", vocab=256, window=32, num_hidden_layers=2), text()
    from trainlore.primitives import losses as L

    values = lambda b: L.rowwise("causal", b, model(b))
    trained_ = list(model.net.parameters())
    state, eight = memory.needed(model, data.batch(np.arange(8), model), 8, values, trained_)
    _, two = memory.needed(model, data.batch(np.arange(2), model), 8, values, trained_)
    assert state == sum(3 * p.numel() * 4 for p in trained_)
    assert 0.5 < two / eight < 2 and eight > 8 * 32 * 256 * 4


def test_weights_in_another_precision_are_counted_once_not_with_every_row():
    from trainlore.primitives import losses as L

    model, data = small(), text()
    values = lambda b: L.rowwise("causal", b, model(b))
    with torch.autocast("cpu", torch.bfloat16):
        _, many = memory.needed(model, data.batch(np.arange(32), model), 32, values, [])
        _, few = memory.needed(model, data.batch(np.arange(2), model), 32, values, [])
    assert 0.7 < few / many < 1.4


def test_ahead_makes_each_batch_once_and_tells_errors():
    made: list = []

    def make(t, n):
        made.append((t, n))
        if t == 3:
            raise Bad("row 7 is broken")
        return {"row": torch.full((n,), t)}

    with Ahead(make, workers=1, pinned=False) as ahead:
        for t in range(3):
            assert ahead(t, 4)["row"].tolist() == [t] * 4
        with pytest.raises(Bad, match="row 7"):
            ahead(3, 4)
    assert len(made) == len(set(made))
    with pytest.raises(Bad, match="workers"):
        Ahead(make, -1, False)


def test_batches_from_several_threads_are_those_of_one_where_epochs_meet():
    from trainlore.primitives.sampling import Sampler

    def made(workers):
        sampler = Sampler(10, lambda *key: torch.Generator().manual_seed(hash(key) % 2**31))
        with Ahead(lambda t, n: {"row": torch.from_numpy(sampler.draw(t, n, None))}, workers, False, depth=4) as ahead:
            return [ahead(t, 4)["row"].tolist() for t in range(60)]

    assert made(4) == made(0)


def test_batches_are_made_while_a_part_evaluates():
    made, wanted = {}, threading.Condition()

    class Slow(Data):
        def batch(self, positions, model=None):
            with wanted:
                made[threading.current_thread().name] = made.get(threading.current_thread().name, 0) + 1
                wanted.notify_all()
            return super().batch(positions, model)

    @method(name="judging", title="", family="x", year=0, status="draft")
    class Judging(Part):
        def watch(self, loop, s, record):
            with wanted:  # an evaluation that takes until the batches of the next steps are there
                s["ahead"] = wanted.wait_for(lambda: sum(made.values()) >= min(6, loop.t + 2), timeout=20)
                assert s["ahead"]

        def start(self, loop):
            return {"ahead": True}

    data = text()
    slow = Slow(data.table, data.rows, data.base_ids, data.trail)
    model, _ = trained(1, None, slow, Judging(), workers=1)
    assert all(name.startswith("batches") for name, n in made.items() if n > 2)
    assert far(model, trained()[0]) == 0


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    for name, why in (
        ("tpu", "device is auto"),
        ("cuda:x", "device is auto"),
        ("cuda", "none here"),
        ("mps", "none here"),
    ):
        with pytest.raises(Bad, match=why):
            placement.choose_device(name)
    assert placement.choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert placement.choose_device("auto").type == "mps" and placement.choose_device("auto", 2).type == "cpu"
    with pytest.raises(Bad, match="mps cannot be shared by 2 processes"):
        placement.choose_device("mps", 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(Bad, match="the last one here is cuda:1"):
        placement.choose_device("cuda:2")
    with pytest.raises(Bad, match="gives each its own"):
        placement.choose_device("cuda:1", 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(Bad, match="4 processes were started here, and there are 2 CUDA devices"):
        placement.choose_device("cuda", 4)
