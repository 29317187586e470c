from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.el2n import EL2N, error_norms
from trainlore.nouns import Data, Model
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds import data
from trainlore.worlds.tiny import HOW, world


def test_norm_is_the_textbook_error():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 5)) * 3, rng.integers(5, size=6)
    for z, y, got in zip(logits, labels, error_norms(torch.tensor(logits), torch.tensor(labels)), strict=True):
        p = np.exp(z) / np.exp(z).sum()
        p[y] -= 1
        assert got.item() == pytest.approx(sum(e * e for e in p) ** 0.5, rel=1e-5)
    shares = torch.eye(5)[torch.tensor(labels)]
    assert torch.allclose(
        error_norms(torch.tensor(logits), shares), error_norms(torch.tensor(logits), torch.tensor(labels))
    )
    assert error_norms(torch.tensor([[50.0, 0.0], [0.0, 50.0]]), torch.tensor([1, -100])).tolist() == pytest.approx(
        [2**0.5, 0.0]
    )


class Fixed(torch.nn.Module):
    """Logits that are the features themselves, times a number."""

    def __init__(self, scale):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(float(scale)))

    def forward(self, x):
        return x * self.scale


ROWS = Data.of({"features": np.array([[4, 0], [2, 0], [1, 0], [0, 3]], np.float32), "label": np.zeros(4, np.int64)})


def test_rows_are_ranked_by_the_mean_over_proxies_and_the_top_can_be_skipped():
    proxies = (Model(Fixed(1)), Model(Fixed(2)))
    out = EL2N(proxies=proxies, keep=1.0)(ROWS)
    each = [
        error_norms(torch.tensor(ROWS["features"] * s), torch.zeros(4, dtype=torch.long)).numpy() for s in (1.0, 2.0)
    ]
    assert np.allclose(out["el2n"], (each[0] + each[1]) / 2, atol=1e-6)
    assert EL2N(proxies=proxies, keep=0.5)(ROWS).ids.tolist() == [2, 3]
    assert EL2N(proxies=proxies, keep=0.5, skip_top=0.25)(ROWS).ids.tolist() == [1, 2]


def test_a_language_model_scores_a_row_by_its_mean_token():
    nouns = world("text")
    few = nouns["data"].take(range(5))
    out = EL2N(proxies=(nouns["model"],), keep=1.0)(Run(0), few)
    batch = few.batch([3], nouns["model"])
    y = batch["labels"][:, 1:]
    with torch.no_grad():
        error = nouns["model"](batch)[:, :-1].softmax(-1) - torch.nn.functional.one_hot(
            y.clamp(min=0), 0 or nouns["model"].net.config.vocab_size
        )
    assert out["el2n"][3] == pytest.approx(error.norm(dim=-1)[y >= 0].mean().item(), rel=1e-4)


def test_bad_input_is_named():
    one = (Model(Fixed(1)),)
    for fields, name in (
        ({"keep": 0.0}, "keep=0"),
        ({"keep": 1.5}, "keep=1.5"),
        ({"skip_top": 1.0}, "skip_top=1"),
        ({"keep": 0.8, "skip_top": 0.5}, "keep=0.8"),
        ({"proxies": ()}, "proxies is empty"),
    ):
        with pytest.raises(ValueError, match=name):
            EL2N(**{"proxies": one, **fields})(ROWS)
    with pytest.raises(ValueError, match="no rows"):
        EL2N(proxies=one)(ROWS.take([]))


@cache
def noisy_and_proxies():
    rows = data("digits/noisy")
    how = {**HOW["digits"], "steps": 60}
    return rows, tuple(Run(s).fit(preset("mlp", seed=s, width=32), rows, **how) for s in range(100, 110))


def measure(seed: int, arm: str) -> float:
    """Share of wrong labels in a fifth of the rows."""
    rows, proxies = noisy_and_proxies()
    if arm == "method":
        top = EL2N(proxies=proxies[seed % 10 : seed % 10 + 1], keep=0.2)(Run(seed), rows)
    else:
        top = rows.take(Run(seed).numpy("rival").permutation(len(rows))[: len(rows) // 5])
    return float((top["label"] != top["truth"]).mean())


CLAIM = Claim(
    method="el2n",
    world="digits",
    rival="as many random rows",
    quantity="share of wrong labels among the fifth that scores highest",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
