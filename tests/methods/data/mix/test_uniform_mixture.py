"""Uniform mixture: every domain the same sum of odds."""

import numpy as np
import pytest

from trainlore.methods.data.mix.uniform_mixture import UniformMixture, even
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_every_domain_has_the_same_sum():
    code = np.array([0, 0, 0, 2, 1, 0, 2])
    odds = even(code)
    for k in range(3):
        mine = [odds[i] for i in range(len(code)) if code[i] == k]
        assert sum(mine) == pytest.approx(1 / 3) and len(set(mine)) == 1


def test_a_rare_domain_is_drawn_as_often():
    nouns = world("digits")
    data = nouns["data"].with_(domain=["rare"] * 20 + ["common"] * 380)
    seen = []

    def drawn(*parts):
        from trainlore.verbs import Part

        class Spy(Part):
            def batch(self, loop, s, batch):
                seen.append(float((batch["row"] < 20).float().mean()))
                return batch

        seen.clear()
        Run(0).fit(world("digits")["model"], data, Spy(), *parts, steps=40, **HOW["digits"])
        return np.mean(seen)

    assert drawn() < 0.1 < 0.35 < drawn(UniformMixture()) < 0.55  # 20 rows cannot fill 16 places of every batch


def test_it_needs_the_column():
    with pytest.raises(ValueError, match="domain"):
        Run(0).fit(
            world("digits")["model"],
            Data.of({"features": np.zeros((4, 64), np.float32), "label": [0, 1, 2, 3]}),
            UniformMixture(),
            steps=1,
        )
