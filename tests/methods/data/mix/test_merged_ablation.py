"""Merged ablation: averages, parts, and whether averages say what training on the union says."""

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.merged_ablation import MergedAblation, averaged, shards
from trainlore.primitives.domains import domain_losses, domains
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_weights_are_averaged_and_counters_kept():
    states = [{"w": torch.tensor([float(i), 2.0 * i]), "n": torch.tensor(i)} for i in (1, 2, 6)]
    assert averaged(states)["w"].tolist() == [3.0, 6.0] and int(averaged(states)["n"]) == 1


def test_parts_are_whole_domains_or_of_one_size():
    code = np.array([0] * 5 + [1] * 7)
    assert [(k, rows.tolist()) for k, rows in shards(code, None, np.random.default_rng(0))] == [
        (0, list(range(5))),
        (1, list(range(5, 12))),
    ]
    cut = shards(code, 3, np.random.default_rng(0))
    assert [k for k, _ in cut] == [0, 1, 1] and all(len(rows) == 3 for _, rows in cut)
    assert len(np.unique(np.concatenate([rows for _, rows in cut]))) == 9
    with pytest.raises(ValueError, match="shard"):
        shards(code, 6, np.random.default_rng(0))


@cache
def seed_model():
    """A network that has seen a little of everything, from which all parts start."""
    return Run(5).fit(world("digits", 5)["model"], world("digits")["data"], steps=30, **HOW["digits"])


def tenths():
    """Digits as five domains of two classes each, and as many held-out rows."""
    nouns = world("digits")
    return tuple(d.with_(domain=[f"d{y // 2}" for y in d["label"]]) for d in (nouns["data"], nouns["test"]))


def test_losses_are_those_of_the_averaged_weights():
    data, held_out = tenths()
    how = {"held_out": held_out, "lr": 1e-2, "largest": 2}
    report = Run(0).step(MergedAblation(**how), seed_model().copy(), data)["merged_loss"]
    assert len(report.values) == (5 + 10) * 5 and report.groups["mix"][:6] == ["d0"] * 5 + ["d1"]
    run, model = Run(0), seed_model().copy()
    code = domains(data, "domain", "x")[1]
    how_to = {"epochs": 1.0, "batch_size": 32, "lr": 1e-2}
    told = [run.fit(model.copy(), data.where(code == k), **how_to).net.state_dict() for k in (1, 3)]
    model.net.load_state_dict({n: (told[0][n] + told[1][n]) / 2 for n in told[0]})
    by_hand = domain_losses(run, model, held_out, domains(held_out, "domain", "x")[1], 5).numpy()
    here = np.array(report.groups["mix"]) == "d1+d3"
    assert report.values[here] == pytest.approx(by_hand, rel=1e-4)
    ranked = report.notes["ranked"]
    assert len(ranked) == 15 and ranked[0]["loss"] == min(r["loss"] for r in ranked)
    alone = Run(0).step(MergedAblation(**{**how, "mixes": (("d3", "d1"),)}), seed_model().copy(), data)["merged_loss"]
    assert alone.values == pytest.approx(by_hand, rel=1e-4) and set(alone.groups["mix"]) == {"d3+d1"}


@pytest.mark.parametrize(
    "fields", [{"mixes": (("d9",),)}, {"mixes": ((),)}, {"largest": 0}, {"epochs": 0}, {"shard": 0}, {"by": "nothing"}]
)
def test_bad_fields_are_named(fields):
    data, held_out = tenths()
    with pytest.raises(ValueError, match=next(iter(fields)) if "by" not in fields else "nothing"):
        MergedAblation(held_out=held_out, **fields)(Run(0), seed_model().copy(), data)


def measure(seed: int, arm: str) -> float:
    """How well predicted losses order the unions of two and three domains as training on them does, mean over held-out
    domains of Spearman's correlation. The rival predicts the mean of the losses of the parts' own models."""
    from scipy.stats import spearmanr

    data, held_out = tenths()
    run, base = Run(seed), Run(seed).fit(world("digits", seed)["model"], data, steps=30, **HOW["digits"])
    report = MergedAblation(held_out=held_out, lr=1e-2, largest=3)(run, base, data)["merged_loss"]
    said = dict(zip(report.groups["mix"][::5], report.values.reshape(-1, 5), strict=True))
    names, code = domains(data, "domain", "claim")
    group, true, told = domains(held_out, "domain", "claim")[1], [], []
    for mix, losses in said.items():
        parts = mix.split("+")
        if len(parts) > 1:
            rows = np.isin(code, [names.index(p) for p in parts])
            trained = run.fit(base.copy(), data.where(rows), epochs=1.0, **HOW["digits"])
            true.append(domain_losses(run, trained, held_out, group, 5).numpy())
            told.append(losses if arm == "method" else np.mean([said[p] for p in parts], 0))
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(np.array(true).T, np.array(told).T, strict=True)]))


CLAIM = Claim(
    method="merged_ablation",
    world="digits",
    rival="the mean loss of the models of the parts",
    quantity="rank correlation with the losses of models trained on the unions",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
