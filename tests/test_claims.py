"""Every method's claim at its quick seeds: it shows, and with the rival in the method's place it does not."""

import pytest

from claims_found import claims
from trainlore import cards
from trainlore.claims import CONTRADICTED, NOT
from trainlore.registry import index

FOUND = claims()


def test_every_method_has_a_claim_or_is_a_measure_of_its_own():
    plain = {
        n for n, e in index().items() if e["kind"] == "Measure" and "lit" not in e["card"]
    }  # a ruler claims nothing
    without = sorted(n for n, e in index().items() if n not in FOUND and n not in plain and "from" not in e)
    assert not without, f"no CLAIM in the tests of {without}"


@pytest.mark.parametrize("name", sorted(FOUND))
def test_claim(name):
    claim = FOUND[name]
    outcome = claim.run(claim.quick)
    recorded = cards.verdict(name)
    if recorded in (NOT, CONTRADICTED):  # an honest negative: the method must at least change the quantity
        assert any(outcome.differences), f"{name} changes nothing"
    else:
        assert outcome.gain > claim.least, f"{claim.quantity}: {outcome}"


@pytest.mark.parametrize("name", sorted(FOUND))
def test_sabotage(name):
    """The check above fails when the rival stands in the method's place."""
    claim = FOUND[name]
    outcome = claim.run(1, sabotaged=True)
    assert not any(outcome.differences), f"{name}: the two arms differ by more than the method: {outcome.differences}"
    assert not outcome.gain > claim.least
