"""Orders of held-out loss that the papers promise, on a small Llama trained on real text: nightly, minutes a corpus."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import pytest

from trainlore.claims import Claim
from trainlore.errors import Bad

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "compression.py"


@cache
def bench():
    spec = importlib.util.spec_from_file_location("bench_compression", BENCHMARK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def trained(corpus):
    return bench().small(corpus)


@pytest.fixture(scope="session", params=["python-docs", "wikitext2"])
def world(request):
    """A small Llama that has read the corpus, rows to calibrate on, rows to judge by."""
    corpus = request.param
    if corpus == "wikitext2" and not (bench().SHARED / corpus).exists():
        pytest.skip(f"{corpus} is not beside the repository, at {bench().SHARED / corpus}")
    try:
        return corpus, trained(corpus)
    except Bad as why:
        pytest.skip(f"the world {corpus} cannot be gathered here: {why}")


@pytest.mark.slow
def test_the_papers_orders_hold_and_sabotage_fails(world):
    corpus, nouns = world
    for name, rival in bench().ORDERS.items():
        order = Claim(
            method=name,
            world=corpus,
            rival=rival,
            quantity="held-out loss",
            better="lower",
            measure=lambda seed, arm, name=name: bench().ordered(name, nouns, seed, arm),
        )
        outcome = order.run(3)
        assert max(outcome.differences) < 0, f"{name} on {corpus}: {outcome}"  # of each draw of calibration rows
        assert not order.holds(sabotaged=True), f"{name} on {corpus}: its rival in its place passes"
