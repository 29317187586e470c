from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.synthesize.random_computation import SEED, Computer, RandomComputation
from trainlore.nouns import Data, Model
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import llama, world

SMALL = {"length": 16, "width": 8, "layers": 2, "batch_size": 4}


def computer(gain, tokens=50, width=8, layers=2):
    made = Computer(tokens, width, layers)
    made.draw(torch.Generator().manual_seed(0), gain)
    return made


def test_the_random_network_is_torchs_lstm():
    mine = computer(2.0)
    lstm = torch.nn.LSTM(16, 8, 2, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        for k in range(2):
            read, hidden = mine.weights[k].split([16 if k == 0 else 8, 8], 1)
            getattr(lstm, f"weight_ih_l{k}").copy_(read), getattr(lstm, f"weight_hh_l{k}").copy_(hidden)
            getattr(lstm, f"bias_ih_l{k}").copy_(mine.biases[k]), getattr(lstm, f"bias_hh_l{k}").zero_()
    rng = np.random.default_rng(0)
    conditions, seeds = (
        torch.from_numpy(rng.integers(50, size=(5, 14))),
        torch.from_numpy(rng.integers(50, size=(5, 3))),
    )
    words, weight, bias = mine(conditions, seeds), *mine.head
    assert words.shape == (5, 14) and torch.equal(words[:, :3], seeds)
    with torch.no_grad():
        out, _ = lstm(torch.cat([mine.embed[words], mine.embed[conditions]], 2))
    assert torch.equal((out @ weight.T + bias).argmax(-1)[:, 2:-1], words[:, 3:])


def test_gain_leads_from_one_sequence_to_chaos():
    rng = np.random.default_rng(0)
    conditions, seeds = (
        torch.from_numpy(rng.integers(50, size=(20, 60))),
        torch.from_numpy(rng.integers(50, size=(20, 8))),
    )
    calm, wild = (
        len({tuple(r) for r in computer(g, width=32)(conditions, seeds)[:, 30:].tolist()}) for g in (1.0, 60.0)
    )
    assert calm == 1 and wild > 15  # so quiet an embedding is heard in chaos alone


def test_the_buffer_is_written_over_and_set_back():
    model = llama()
    batches = list(RandomComputation(before=40, **SMALL)._batches(Run(0), model))
    assert len(batches) == 40 and all(b.shape == (4, 16) for b in batches)
    whole = np.concatenate(batches)
    assert whole.min() >= 0 and whole.max() < model.net.config.vocab_size
    kinds = np.array([len(set(row)) for row in whole.tolist()])
    assert (kinds == 1).any() and (kinds > 12).any() and ((kinds > 1) & (kinds < 12)).any()  # constant, noise, between
    again = list(RandomComputation(before=3, **SMALL)._batches(Run(0), model))
    assert all(np.array_equal(a, b) for a, b in zip(again, batches))


def test_no_steps_before_is_plain_training_and_the_rest_is_paid():
    data, how = world("text")["data"], {"steps": 3, "batch_size": 4}
    plain, other, more = Run(0), Run(0), Run(0)
    wanted = plain.fit(llama(), data, lr=1e-3, **how)
    found = RandomComputation(before=0, **{**SMALL, **how})(other, llama(), data)
    assert found.fingerprint == wanted.fingerprint
    changed = RandomComputation(before=2, **{**SMALL, **how})(more, llama(), data)
    assert changed.fingerprint != wanted.fingerprint and more.meter.steps == 5
    forwards = RandomComputation(before=0, **{**SMALL, "length": SEED + 1, **how})
    assert (
        more.meter.forward > other.meter.forward and forwards(Run(0), llama(), data).fingerprint == wanted.fingerprint
    )


def test_bad_input_is_named():
    data = world("text")["data"]
    for fields, name in (
        ({"before": -1}, "before"),
        ({"length": SEED}, "length above 8"),
        ({"gain": (2.0, 1.0)}, "gain="),
    ):
        with pytest.raises(ValueError, match=name):
            RandomComputation(**fields)(llama(), data)
    with pytest.raises(ValueError, match="not a classifier"):
        RandomComputation()(Model(torch.nn.Linear(2, 2), "classifier"), data)


def measure(seed: int, arm: str) -> float:
    run, model = Run(seed), llama(seed)
    rows = model.encode(Data(two_domains.make(200, 5000 + seed)))
    before = 40 if arm == "method" else 0
    fields = {"before": before, "length": 40, "width": 16, "layers": 2, "gain": (1.0, 12.0), "steps": 40}
    RandomComputation(**fields, batch_size=8, lr=3e-3)(run, model, rows)
    test = model.encode(Data(two_domains.make(100, 2)))
    return float(run.infer(model, test, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean())


CLAIM = Claim(
    method="random_computation",
    world="text",
    rival="training on the data alone, for as many steps on the data",
    quantity="held-out loss of a tiny Llama after 40 steps on the data",
    better="lower",
    measure=measure,
    seeds=10,
    quick=1,
)
