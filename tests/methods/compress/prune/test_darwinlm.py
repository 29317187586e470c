from __future__ import annotations

from functools import cache

import pytest

from trainlore.claims import Claim
from trainlore.methods.compress.prune.darwinlm import DarwinLM
from trainlore.nouns import Model
from trainlore.primitives.anatomy import bodies
from trainlore.primitives.calibrating import batches_of
from trainlore.primitives.levels import stairs
from trainlore.primitives.shrinking import count, shrink
from trainlore.primitives.sizing import answers, cut_to, database, strayed
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world

QUICK = {"generations": 6, "offspring": 8, "survivors": (4, 1), "judged": (8, 32), "taught": (0, 0), "rows": 32}


def kept(model):
    return [(b.groups, count(model.net, b)) for b in bodies(model)]


def test_children_are_better_than_their_parents_at_the_same_size():
    at = world("text")
    dense = at["teacher"]
    after = Run(0).step(DarwinLM(levels=4, tolerance=9.0, **QUICK), dense.copy(), at["data"])
    groups, neurons = zip(*kept(after), strict=True)
    assert sum(groups) == 2 and sum(neurons) == 64 and all(n % 16 == 0 for n in neurons)
    told = after.about["darwinlm"]
    assert (told["groups"], told["neurons"]) == (list(groups), list(neurons)) and len(told["fitness"]) == 6
    model = dense.copy()  # the first parent: all blocks on one level
    batches = batches_of(Run(0), model, at["data"], 32, 8, "darwinlm")
    before = answers(model, batches)
    sites = database(model, batches, lambda body, part, n: stairs(n, 4))
    half = [next(i for i, v in enumerate(s.levels) if len(v.kept) == len(s.groups) // 2) for s in sites]
    first = cut_to(model, sites, half)
    assert kept(first) == [(1, 32)] * 2 and strayed(after, batches, before) <= strayed(first, batches, before)
    assert told["fitness"][-1] == pytest.approx(strayed(after, batches, before), rel=1e-3)


def test_training_before_the_choice_changes_it_and_not_the_weights():
    at, found = world("text"), []
    for taught, lr in (((0, 0), 1e-5), ((16, 32), 3e-3)):
        how = {**QUICK, "generations": 1, "offspring": 3, "survivors": (2, 1), "taught": taught, "lr": lr}
        run = Run(1)
        after = run.step(DarwinLM(levels=4, tolerance=9.0, **how), at["teacher"].copy(), at["data"])
        found.append((after.about["darwinlm"]["fitness"], run.meter.steps))
        whole = at["teacher"].net.model.layers[0].mlp.up_proj.weight
        mine = after.net.model.layers[0].mlp.up_proj.weight
        assert all((row == whole).all(1).any() for row in mine)  # what stays is what it was
    assert found[0][1] == 0 < found[1][1] == 3 * 2 + 3 * 4 and found[0][0] != found[1][0]


@pytest.mark.parametrize(
    "fields",
    [{"keep": 0.0}, {"levels": 0}, {"generations": 0}, {"survivors": (4, 2)}, {"judged": (8,)}, {"taught": (-1, 0)}],
)
def test_bad_input_is_named(fields):
    at = world("text")
    with pytest.raises(ValueError, match=next(iter(fields))):
        DarwinLM(**{**QUICK, **fields})(at["teacher"].copy(), at["data"])
    with pytest.raises(ValueError, match="different numbers already"):
        DarwinLM(**QUICK)(shrink(at["teacher"].copy(), [[0], None]), at["data"])


def test_keeping_everything_changes_nothing():
    at = world("text")
    after = Run(0).step(DarwinLM(keep=1.0, **QUICK), at["teacher"].copy(), at["data"])
    assert kept(after) == [(2, 64)] * 2 and after.fingerprint == at["teacher"].fingerprint


@cache
def deep() -> Model:
    """A Llama of four blocks: of two there are few ways to differ."""
    return Run(5).fit(llama(5, layers=4), world("text")["data"], steps=120, **HOW["text"])


def measure(seed: int, arm: str) -> float:
    """How far half of the heads and neurons strays; both arms take their blocks from one database."""
    at, run = world("text"), Run(seed)
    method = DarwinLM(levels=8, tolerance=9.0, **{**QUICK, "offspring": 6, "judged": (8, 16)})
    if arm == "method":
        model = run.step(method, deep().copy(), at["data"])
    else:
        model = deep().copy()
        batches = batches_of(run, model, at["data"], 32, 8, "darwinlm")
        sites = database(model, batches, lambda body, part, n: [n // 2])
        model = cut_to(model, sites, [1] * len(sites))
    unseen = [at["held_out"].batch(range(60), model)]
    return strayed(model, unseen, answers(deep(), unseen))


CLAIM = Claim(
    method="darwinlm",
    world="text",
    rival="every block cut to half, from the same database",
    quantity="KL from the dense model on unseen rows with half of the heads and neurons",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
