from __future__ import annotations

import math
from functools import cache

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.compress.prune.sparse_then_prune import SparseThenPrune, spread
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.masks import matrices, weight_of
from trainlore.runs import Run
from trainlore.verbs import Part
from trainlore.worlds.tiny import HOW, world

VIT = {"batch_size": 32, "lr": 3e-3, "precision": "fp32"}


class Look(Part):
    """Writes down the rows of each batch and their losses, as the part before it in the recipe left them."""

    seen: list = []

    def loss(self, loop, s, batch, out, inner):
        values = inner(batch, out)
        self.seen.append((batch, values.detach().clone()))
        return values


@cache
def images(part):
    """Digits as images of 8 x 8."""
    rows = world("digits")[part]
    return Data.of({"pixel_values": rows["features"].reshape(-1, 1, 8, 8), "label": rows["label"]})


def vit(seed):
    return preset("vit-digits", seed=seed, num_hidden_layers=2, hidden_size=32, intermediate_size=64)


def test_the_penalty_against_a_loop():
    a = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).softmax(-1)
    for row in range(2):
        want = [math.log(1 + v * v) for v in a[row].flatten().tolist()]
        assert float(spread(a)[row]) == pytest.approx(sum(want) / len(want), rel=1e-5)
    assert float(spread(torch.full((1, 1, 4, 4), 0.25))) < float(spread(torch.eye(4)[None, None]))  # even is cheapest


@pytest.mark.parametrize("blocks", ["last", "all"])
def test_it_is_added_to_the_row_losses(blocks):
    Look.seen = []
    for strength in (0.0, 5.0):
        part = SparseThenPrune(strength=strength, keep=1.0, blocks=blocks)
        Run(0).fit(vit(0), images("data"), part, Look(), steps=1, **VIT)
    (batch, without), (_, added) = Look.seen
    net = vit(0).net
    net.set_attn_implementation("eager")
    with torch.no_grad():
        seen = net(pixel_values=batch["pixel_values"], output_attentions=True).attentions
    want = torch.stack([spread(a) for a in (seen if blocks == "all" else seen[-1:])]).mean(0)
    torch.testing.assert_close(added - without, 5.0 * want, rtol=1e-3, atol=1e-5)


def test_zeros_are_exact_over_all_layers_and_tokens_without_a_target_are_not_charged():
    at, Look.seen = world("text"), []
    part = SparseThenPrune(keep=0.6, strength=5.0)
    model = Run(0).fit(at["model"], at["data"], part, Look(), steps=3, **HOW["text"])
    weights = torch.cat([weight_of(m).flatten() for m in matrices(model.net).values()])
    assert int((weights != 0).sum()) == round(0.6 * weights.numel())
    assert model.net.config._attn_implementation != "eager" and "_attention_before" not in vars(model.net)
    assert all((values[batch["labels"][:, 1:] == -100] == 0).all() for batch, values in Look.seen)


def test_bad_input_is_named():
    at = world("text")
    for fields in ({"keep": 0.0}, {"strength": -1.0}, {"blocks": "first"}):
        with pytest.raises(ValueError, match=next(iter(fields))):
            Run(0).fit(at["model"], at["data"], SparseThenPrune(**fields), steps=1, **HOW["text"])
    with pytest.raises(ValueError, match="attention"):
        Run(0).fit(world("digits")["model"], world("digits")["data"], SparseThenPrune(), steps=1, **HOW["digits"])


@cache
def trained():
    return Run(41).fit(vit(41), images("data"), steps=150, **VIT)


def measure(seed: int, arm: str) -> float:
    """Accuracy of a ViT that is fine-tuned with or without the penalty and pruned to half of its weights.

    At the authors' strength, a hundredth of this, no answer changes.
    """
    run = Run(seed)
    part = SparseThenPrune(keep=0.5, strength=1.0 if arm == "method" else 0.0)
    model = run.fit(trained().copy(), images("data"), part, steps=20, **VIT)
    return float(run.infer(model, images("test"), lambda b, out: (out.argmax(-1) == b["labels"]).float()).mean())


CLAIM = Claim(
    method="sparse_then_prune",
    world="digits",
    rival="the same fine-tuning and pruning without the penalty",
    quantity="test accuracy of a ViT with half of its weights",
    better="higher",
    measure=measure,
    seeds=20,
    quick=3,
)
