from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.select.instruct_mining import InstructMining
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import HOW, llama


def test_the_papers_rule():
    data = Data.of({"reward": [1.0, 2.0, 0.0], "length": [100, 0, 0], "knn_6": [0.5, 0.0, 1.0]})
    out = InstructMining(keep=0.34)(data)
    want = [1.0694 - 0.1498 + 0.008257 - 0.4675, 1.0694 - 0.2996, 1.0694 - 0.9350]
    assert out.whole()["instruct_mining"].tolist() == pytest.approx(want) and out.ids.tolist() == [2]


def test_what_is_missing_is_made():
    tok = llama()
    data = tok.encode(Data.of({"prompt": ["a b", "c", "d"], "completion": [" e f g", " h", " i j"]}))
    for rows in (data, data.without("labels", "input_ids")):
        out = InstructMining(indicators=("length",), weights=(1.0,), intercept=0.0, keep=1.0)(rows)
        assert np.argsort(out["instruct_mining"]).tolist() == [1, 2, 0]
    texts = Data(two_domains.make(12, seed=0))
    how = {"indicators": ("knn_6",), "weights": (1.0,), "intercept": 0.0, "keep": 1.0, "encoder": tok}
    x = Run(0).embed(tok, texts).numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), 1)[:, 6]
    assert np.allclose(InstructMining(**how)(texts)["instruct_mining"], want, atol=1e-3)


def test_bad_input_is_named():
    data = Data.of({"text": ["a b", "c d e"], "reward": [0.0, np.nan]})
    for fields, said in (
        ({"indicators": ("length", "knn_6")}, "without an `encoder` needs column 'knn_6'"),
        ({"indicators": ("charm",), "weights": (1.0,)}, "'charm'"),
        ({"indicators": ("reward",), "weights": (1.0,)}, "'reward' must hold one number"),
        ({"indicators": ("length",)}, "1 indicators and 3 weights"),
        ({"indicators": ("length",), "probes": Data.of({"length": [1.0]})}, "'loss'"),
        ({"indicators": ("length",), "probes": Data.of({"length": [1.0], "loss": [0.0]})}, "`loss` must be above 0"),
        (
            {"indicators": ("length",), "probes": Data.of({"length": [np.nan], "loss": [1.0]})},
            "`probes`: column 'length'",
        ),
        ({"indicators": ("text",), "weights": (1.0,)}, "'text' must hold one number"),
        ({"indicators": (), "weights": ()}, "one indicator or more"),
        ({"indicators": ("length",), "weights": (1.0,), "trials": -1}, "trials from 0"),
        ({"indicators": ("length",), "weights": (1.0,), "trials": 2}, "needs `model`"),
    ):
        with pytest.raises(ValueError, match=said):
            InstructMining(**fields)(data)


INDICATORS = ("length", "surprise", "variety")


@cache
def texts(n, seed, noise=0.0):
    """Texts of which a share is words without order, with three indicators of each."""
    model = llama()
    rows = model.encode(Data(two_domains.make(n, seed=seed, noise=noise)))
    length = np.diff(rows.lists("input_ids")[1]).astype(float)
    surprise = Run(0).infer(reader(), rows, loss).double().numpy()
    variety = np.array([len(set(t.split())) / len(t.split()) for t in rows.text()])
    return rows.with_(length=length, surprise=surprise, variety=variety)


def loss(batch, out):
    return per_row(rowwise("causal", batch, out), batch, "causal")


@cache
def reader():
    return Run(31).fit(llama(31), llama().encode(Data(two_domains.make(100, seed=9))), steps=30, **HOW["text"])


def tuned(run, rows, steps):
    return float(run.infer(run.fit(llama(1), rows, steps=steps, **HOW["text"]), texts(60, 2), loss).mean())


@cache
def probes():
    """Ten small trainings on subsets of rows with more and less noise."""
    rows, rng, found = texts(300, 0, 0.4), np.random.default_rng(0), []
    noisy = np.array([m == "noise" for m in rows["made"].to_pylist()])
    for share in np.linspace(0, 1, 10):
        odds = np.where(noisy, share, 1 - share) + 1e-9
        some = rows.take(rng.choice(300, 60, replace=False, p=odds / odds.sum()))
        found.append([*(some[name].mean() for name in INDICATORS), tuned(Run(7), some, 12)])
    return Data.of(dict(zip([*INDICATORS, "loss"], np.array(found).T, strict=True)))


def test_a_search_keeps_an_amount_between_its_bounds():
    rows = texts(300, 0, 0.4).take(range(40))
    how = {"indicators": ("surprise",), "weights": (1.0,), "model": llama(1), "held_out": texts(60, 2), "batch_size": 8}
    out = InstructMining(**how, keep=0.5, least=0.2, trials=2, epochs=1)(rows)
    order = np.argsort(rows["surprise"], kind="stable")
    assert 8 <= len(out) <= 20 and out.ids.tolist() == sorted(rows.ids[order[: len(out)]].tolist())
    with pytest.raises(ValueError, match="least=0.9"):
        InstructMining(**how, keep=0.5, least=0.9, trials=2)(rows)


def measure(seed: int, arm: str) -> float:
    """Held-out loss after training on a quarter of rows of which four in ten are words without order."""
    run, pool = Run(seed), texts(300, 0, 0.4)
    pool = pool.take(run.numpy("pool").permutation(300)[:200])
    pick = (
        InstructMining(indicators=INDICATORS, probes=probes(), keep=0.25) if arm == "method" else RandomRows(keep=0.25)
    )
    return tuned(run, pick(run, pool), 30)


CLAIM = Claim(
    method="instruct_mining",
    world="text",
    rival="random_rows",
    quantity="held-out loss after training on a quarter of noisy rows",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
