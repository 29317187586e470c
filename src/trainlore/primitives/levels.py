"""Levels: sizes of one place from whole to nothing, and one level for each of many places, varied while their sum stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Levels = tuple[int, ...]  # one a place: how many steps smaller than whole


def stairs(total: int, levels: int) -> list[int]:
    """Sizes from `total` down in equal steps, about `levels` of them, as far as whole steps go."""
    step = max(1, round(total / levels))
    return list(range(total, -1, -step))


def switched(parent: Levels, kinds: Sequence[Sequence[int]], tops: Sequence[int], rng: np.random.Generator) -> Levels:
    """The parent after one to three level switches: of one kind of site one goes a level up and another a level down.

    kinds: the sites of each kind; tops: the last level of each site. The sum of levels of each kind stays.
    """
    child = list(parent)
    chances = np.array([len(kind) for kind in kinds]) / sum(len(kind) for kind in kinds)
    for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):  # few more often than many
        kind = kinds[rng.choice(len(kinds), p=chances)]
        larger = [at for at in kind if child[at] > 0]
        if not larger:
            continue
        grows = larger[rng.integers(len(larger))]
        smaller = [at for at in kind if child[at] < tops[at] and at != grows]
        if smaller:
            child[grows] -= 1
            child[smaller[rng.integers(len(smaller))]] += 1
    return tuple(child)


def offspring(
    parent: Levels, kinds: Sequence[Sequence[int]], tops: Sequence[int], n: int, rng: np.random.Generator
) -> list[Levels]:
    """Up to n different children of a parent, none like it, each `switched`; fewer where no more are found."""
    found: dict[Levels, None] = {}
    for _ in range(20 * n):
        child = switched(parent, kinds, tops, rng)
        if child != parent:
            found[child] = None
        if len(found) == n:
            break
    return list(found)
