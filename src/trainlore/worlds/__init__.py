"""Embedded worlds: real and made-up data that need no download."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from trainlore.errors import Bad
from trainlore.sources import WORLDS as PARTS

if TYPE_CHECKING:
    from trainlore.nouns import Data


def data(spec: str) -> Data:
    """The Data of `NAME` or `NAME/PART`; without a part, the first one."""
    from trainlore.nouns import Data

    name, _, part = spec.partition("/")
    if name not in PARTS:
        raise Bad(f"no world {name!r}; worlds are {', '.join(PARTS)}")
    part = part or PARTS[name][0]
    if part not in PARTS[name]:
        raise Bad(f"world {name} has no part {part!r}; it has {', '.join(PARTS[name])}")
    return Data(_tables(name)[part])


@cache
def _tables(name: str) -> Any:
    if name == "python-docs":
        from trainlore.worlds import python_docs

        return python_docs.Parts()
    if name == "digits":
        from trainlore.worlds import digits

        return digits.split()
    if name == "sums":
        from trainlore.worlds import sums

        return sums.split(2000, 400)
    from trainlore.worlds import two_domains

    return {
        "pool": two_domains.make(2000, seed=0),
        "target": two_domains.make(200, seed=1, domains=("target",)),
        "target_test": two_domains.make(200, seed=4, domains=("target",)),
        "held_out": two_domains.make(200, seed=2),
        "pairs": two_domains.pairs(400, seed=3),
    }
