from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.active.active_learning import ActiveLearning
from trainlore.methods.data.active.hast import HAST
from trainlore.methods.data.active.pcoreset import PCoreSet
from trainlore.methods.data.active.uncertainty import Uncertainty
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.data.select.vote_k import VoteK
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.verbs import Curate
from trainlore.worlds import data
from trainlore.worlds.tiny import world


class Watched(Run):
    """A run that remembers what was trained on, from which weights, and what the pickers saw."""

    def fit(self, model, rows, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, rows)]
        return super().fit(model, rows, *parts, **how)

    def step(self, method, *nouns):
        if isinstance(method, Curate):
            self.picks = [*getattr(self, "picks", []), (method, *nouns)]
        return super().step(method, *nouns)


def few(at, **fields):
    return ActiveLearning(
        **{"pool": at["spare"], "oracle": "truth", "acquire": Uncertainty(), "rounds": 3, "steps": 10, **fields}
    )


def test_every_round_the_asked_rows_move_with_their_labels_and_nobody_sees_the_others():
    at, run = world("digits"), Watched(0)
    start, rows = at["model"].fingerprint, at["data"].take(range(20))
    model = few(at, count=5)(run, at["model"], rows)
    told, truth = model.about["asked"], at["spare"]["truth"]
    assert [f for f, _ in run.fits] == [start] * 4 and at["model"].fingerprint == start
    assert [len(d) for _, d in run.fits] == [20, 25, 30, 35]
    assert [len(p[1]) for p in run.picks] == [397, 392, 387]
    for (method, pool), entry, (_, trained) in zip(run.picks, told, run.fits[1:], strict=True):
        assert "truth" not in pool.columns and "label" not in pool.columns and method.count == 5
        assert entry["rows"] == method(Run(0), pool).ids.tolist() and entry["labels"] == truth[entry["rows"]].tolist()
        assert trained["label"][-5:].tolist() == entry["labels"]
        assert np.array_equal(trained["features"][-5:], at["spare"]["features"][entry["rows"]])
    assert len({r for t in told for r in t["rows"]}) == 15 and json.dumps(model.about)


def test_what_picks_is_told_what_it_has_fields_for():
    at = world("digits")
    for acquire in (RandomRows(), VoteK(k=5), PCoreSet()):
        run = Watched(0)
        model = few(at, acquire=acquire, count=7, rounds=2)(run, at["model"], at["data"].take(range(20)))
        assert [len(t["rows"]) for t in model.about["asked"]] == [7, 7]
    assert len(run.picks[1][0].labelled) == 27 and run.picks[0][0].model is not run.picks[1][0].model


def test_it_goes_on_from_the_last_weights_if_told_and_ends_with_the_pool():
    at, run = world("digits"), Watched(0)
    pool = at["spare"].take(range(12))
    model = few(at, pool=pool, count=5, rounds=9, restart=False)(run, at["model"], at["data"].take(range(20)))
    assert [len(t["rows"]) for t in model.about["asked"]] == [5, 5, 2]
    assert len({f for f, _ in run.fits}) == 4


def test_answers_may_come_from_a_file_and_it_waits_for_those_that_do_not(tmp_path):
    at = world("digits")
    rows, truth = at["data"].take(range(20)), at["spare"]["truth"]
    whole = few(at, count=5)(Run(0), at["model"], rows)
    asked = [r for t in whole.about["asked"] for r in t["rows"]]
    file = tmp_path / "labels.jsonl"

    def write(ids, of=lambda i: i):
        lines = [{"row": of(ids[0]), "label": 9, "choice": "x"}]  # taken back by the next
        lines += [{"row": of(i), "label": int(truth[i]), "choice": "x"} for i in ids]
        file.write_text("\n".join(json.dumps(line) for line in lines))

    write(asked[:10])
    half = few(at, count=5, oracle=str(file))(Run(0), at["model"], rows)
    assert half.about["waiting"] == asked[10:] and len(half.about["asked"]) == 2
    write(asked)
    again = few(at, count=5, oracle=Data.of(file))(Run(0), at["model"], rows)
    assert again.about["waiting"] == [] and again.fingerprint == whole.fingerprint
    write(asked, of=lambda i: f"r{i}")
    named = at["spare"].with_(name=[f"r{i}" for i in range(397)])
    assert (
        few(at, count=5, pool=named, ids="name", oracle=str(file))(Run(0), at["model"], rows).fingerprint
        == whole.fingerprint
    )


def test_answers_may_be_the_pool_s_own_labels():
    at = world("digits")
    model = few(at, pool=at["test"], oracle="label", rounds=1, count=4)(Run(0), at["model"], at["data"])
    (told,) = model.about["asked"]
    assert told["labels"] == at["test"]["label"][told["rows"]].tolist()


def test_the_rules_stop_it():
    at, rows = world("digits"), world("digits")["data"].take(range(20))
    steady = few(at, count=2, rounds=8, agreement=-1.0, window=2)(Run(0), at["model"], rows).about["asked"]
    assert len(steady) == 2 and all(-1 <= t["kappa"] <= 1 for t in steady)
    assert len(few(at, count=2, rounds=4, agreement=1.01)(Run(0), at["model"], rows).about["asked"]) == 4
    sure = few(at, count=2, rounds=4, certain=1.0)(Run(0), at["model"], rows).about["asked"]
    assert len(sure) == 1 and 0 < sure[0]["entropy"] < 1
    assert len(few(at, count=2, rounds=4, certain=0.0)(Run(0), at["model"], rows).about["asked"]) == 4


def test_another_way_to_learn_gets_the_rest_of_the_pool():
    at, run = world("digits"), Watched(0)
    model = few(at, rounds=1, learn=HAST(steps=30, lr=1e-2, k=5))(run, at["model"], at["data"].take(range(40)))
    assert model.about["hast"]["judged"] == 387 and len(run.fits) == 4


def test_bad_input_is_named():
    at = world("digits")
    twice = at["spare"].take([1, 1])

    @dataclass(frozen=True)
    class Elsewhere(Curate):
        def __call__(self, run, rows):
            return rows.take([])

    for fields, says in (
        ({"count": 0}, "count=0"),
        ({"oracle": "lable"}, "'lable' is no column"),
        ({"oracle": at["test"]}, "'row'"),
        ({"oracle": "features"}, "not class numbers"),
        ({"pool": twice}, "twice"),
        ({"acquire": Elsewhere()}, "must pick rows"),
        ({"pool": at["spare"].take([])}, "pool.*no rows"),
    ):
        with pytest.raises(ValueError, match=says):
            few(at, **fields)(at["model"], at["data"])
    with pytest.raises(ValueError, match="'label'"):
        few(at)(at["model"], at["spare"])


def measure(seed: int, arm: str) -> float:
    """Test accuracy with 100 labels: 20 at random, then 4 rounds of 20."""
    run, rows = Run(seed), data("digits/train")
    order = run.numpy("claim").permutation(len(rows))
    with run.global_rng("net"):
        net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    how = {"pool": rows.take(order[20:]), "rounds": 4, "count": 20, "steps": 60, "lr": 3e-3}
    loop = ActiveLearning(acquire=Uncertainty() if arm == "method" else RandomRows(), **how)
    return Accuracy()(run, loop(run, Model(net), rows.take(order[:20])), data("digits/test")).value


CLAIM = Claim(
    method="active_learning",
    world="digits",
    rival="as many random rows",
    quantity="test accuracy with 100 labels, 80 of them asked for by margin",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
