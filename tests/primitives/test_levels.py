from __future__ import annotations

import numpy as np

from trainlore.primitives.levels import offspring, stairs, switched


def test_sizes_are_equal_steps_apart():
    assert stairs(32, 8) == [32, 28, 24, 20, 16, 12, 8, 4, 0] and stairs(2, 10) == [2, 1, 0]
    assert stairs(64, 10)[:2] == [64, 58] and stairs(64, 10)[-1] == 4


def test_switches_keep_the_size_and_stay_within_the_levels():
    rng, kinds, tops = np.random.default_rng(0), [[0, 2, 4], [1, 3, 5]], [2, 8, 2, 8, 2, 8]
    parent, moves = (1, 4, 1, 4, 1, 4), []
    for _ in range(300):
        child = switched(parent, kinds, tops, rng)
        for kind in kinds:
            assert sum(child[i] for i in kind) == sum(parent[i] for i in kind)
        assert all(0 <= level <= top for level, top in zip(child, tops, strict=True))
        moves.append(sum(abs(a - b) for a, b in zip(child, parent, strict=True)) // 2)
        parent = child
    counts = np.bincount(moves, minlength=4)
    assert counts[0] + counts[1] > 150 and counts.max() == counts[1] and counts[3] > 0  # min of two dice: 5, 3, 1 of 9
    assert switched((0, 0), [[0, 1]], [2, 2], rng) == (0, 0)


def test_offspring_differ_from_the_parent_and_each_other():
    kinds, tops, rng = [[0, 1, 2], [3, 4]], [2] * 5, np.random.default_rng(0)
    found = offspring((1, 1, 1, 1, 1), kinds, tops, 8, rng)
    assert len(set(found)) == 8 and (1, 1, 1, 1, 1) not in found
    assert all(sum(c[:3]) == 3 and sum(c[3:]) == 2 for c in found)
    assert sorted(offspring((1, 1), [[0, 1]], [2, 2], 8, rng)) == [(0, 2), (2, 0)]  # there are no more
