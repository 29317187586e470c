"""The contract of every method in the index: each law, on each method it holds for."""

import itertools

import pytest
import torch

from trainlore import checks
from trainlore.errors import Bad
from trainlore.registry import index, load
from trainlore.slots import Clash

CASES = [(law, name) for name in sorted(index()) for law in checks.laws(name)]
NAMES = [n for n in sorted(index()) if index()[n]["kind"] == "Part"]


@pytest.mark.parametrize(("law", "name"), CASES, ids=[f"{n}-{law.__name__}" for law, n in CASES])
def test_law(law, name):
    if why := getattr(load(name), "known", {}).get(law.__name__):
        with pytest.raises((AssertionError, Clash, ValueError)):  # an exception that no longer holds must go
            law(name)
        pytest.xfail(why)
    law(name)


MODES = {"bf16": {"precision": "bf16"}, "pieces": {"micro_batch": 4}, "compiled": {"compile": "aot_eager"}}


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("law", [checks.null_is_nothing, checks.resumes], ids=lambda law: law.__name__)
def test_law_in_other_precision_in_pieces_and_compiled(law, name, mode):
    """Autocast, accumulation and compiled blocks change how a training runs; the laws hold under each of them."""
    if not load(name).rowwise and mode == "pieces":
        pytest.skip("one loss for the whole batch is not cut")
    if (known := load(name).known) and (law.__name__ in known or (mode == "pieces" and "micro_batches_agree" in known)):
        pytest.skip(known.get(law.__name__, "") or known["micro_batches_agree"])
    law(name, **MODES[mode])


def in_world(world):
    return [n for n in NAMES if load(n).tiny["world"] == world]


PAIRS = [(a, b) for w in checks.tiny.NAMES for a, b in itertools.permutations(in_world(w), 2)]


def pytest_generate_tests(metafunc):
    if "pair" in metafunc.fixturenames:
        some = PAIRS if metafunc.config.getoption("--all-pairs") else PAIRS[::13]  # nightly all, else one in thirteen
        metafunc.parametrize("pair", some, ids=[f"{a}+{b}" for a, b in some])


def test_pair(pair):
    """Two parts train to finite weights or clash with a reason, and a null is nothing in company too."""
    a, b = pair
    nouns = checks.nouns_of(a)
    try:
        both, _ = checks.fitted(a, checks.make(a, nouns), checks.make(b, nouns), nouns=nouns, steps=3)
    except Bad as why:  # a clash, or a structure that the other cannot stand on: either way with a reason
        assert str(why)
        return
    assert all(v.isfinite().all() for v in both.net.state_dict().values() if v.is_floating_point())
    null = load(b).null
    if null is None:
        return
    alone_nouns, nouns = checks.nouns_of(a), checks.nouns_of(a)
    alone, _ = checks.fitted(a, checks.make(a, alone_nouns), nouns=alone_nouns, steps=3)
    company, _ = checks.fitted(a, checks.make(a, nouns), checks.make(b, nouns, **null), nouns=nouns, steps=3)
    mine, theirs = alone.net.state_dict(), company.net.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[k], theirs[k]) for k in mine), f"{b} at its null changes {a}"


def test_every_method_has_a_test_of_its_own():
    from pathlib import Path

    have = {p.stem.removeprefix("test_") for p in (Path(__file__).parent / "methods").rglob("test_*.py")}
    files = {e["at"].partition(":")[0].rpartition(".")[2] for n, e in index().items() if "from" not in e}
    assert files <= have, f"no test file for {sorted(files - have)}"
