"""Precision, compiling, batches made ahead, spikes and memory: each changes how a training runs, not what it learns."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainlore import loop as engine
from trainlore import placement
from trainlore.errors import Bad
from trainlore.feeding import Ahead
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.spikes import Diverged, Guard
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
    lines = [json.loads(line) for line in (tmp_path / "passed_over.jsonl").read_text().splitlines()]
    assert lines and all(5 in line["rows"] for line in lines)
    spoilt = Run(2).fit(w["model"].copy(), w["data"], Poisoned(rows=rows, by=1e6), **how)
    judge = lambda m: float(Run().infer(m, w["test"], lambda b, out: out.argmax(-1) == b["labels"]).float().mean())
    assert judge(healed) > judge(spoilt)
    whole = Run(2).fit(w["model"].copy(), w["data"], spikes="roll_back", **how)
    assert far(whole, Run(2).fit(w["model"].copy(), w["data"], **how)) == 0


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


def test_a_step_that_cannot_fit_is_refused_with_the_ways_out(monkeypatch):
    model = preset("llama-1m", vocab=256, window=32, num_hidden_layers=2)
    monkeypatch.setattr(engine, "available", lambda device: 2 << 20)
    with pytest.raises(Bad, match=r"would need about .* micro_batch: 2 .*checkpoint_activations") as found:
        Run().fit(model, text(), steps=1, batch_size=8, precision="fp32")
    assert "bf16" in str(found.value)


def test_what_a_step_needs_is_about_what_it_takes():
    """The prediction lies within a factor of two of what autograd really holds at the end of the forward pass."""
    model, data = preset("llama-1m", vocab=256, window=32, num_hidden_layers=2), text()
    from trainlore.primitives import losses as L

    values = lambda b: L.rowwise("causal", b, model(b))
    trained_ = list(model.net.parameters())
    state = sum(3 * p.numel() * 4 for p in trained_)
    eight = placement.needed(model, data.batch(np.arange(8), model), 8, values, trained_) - state
    two = placement.needed(model, data.batch(np.arange(2), model), 8, values, trained_) - state
    assert 0.5 < two / eight < 2 and eight > 8 * 32 * 256 * 4


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
