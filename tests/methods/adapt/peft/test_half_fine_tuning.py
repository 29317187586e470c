from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from trainlore.claims import Claim
from trainlore.methods.adapt.peft.half_fine_tuning import HalfFineTuning, categories, drawn
from trainlore.nouns import Model
from trainlore.primitives import losses
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


@pytest.mark.parametrize(
    "sizes, share, total",
    [([4] * 6, 0.5, 12), ([3] * 6, 0.5, 9), ([2] * 4, 0.5, 4), ([1] * 5, 0.4, 2), ([3] * 4, 0.9, 11)],
)
def test_the_share_holds_over_all_and_evenly(sizes, share, total):
    seen = set()
    for seed in range(20):
        kept = drawn(sizes, share, torch.Generator().manual_seed(seed))
        counts = [len(k) for k in kept]
        assert sum(counts) == total and max(counts) - min(counts) <= 1
        assert all(k <= set(range(n)) for k, n in zip(kept, sizes, strict=True))
        seen.add(repr(kept))
    assert len(seen) > 5


def test_the_layers_of_a_block_fall_into_the_papers_categories():
    found = {k: [[p for p, _ in block] for block in v] for k, v in categories(llama()).items()}
    assert found["attention"] == [[f"self_attn.{x}_proj" for x in "qkvo"]] * 2
    assert found["feed-forward"] == [["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]] * 2
    assert found["norm"] == [["input_layernorm", "post_attention_layernorm"]] * 2
    bert = Model.of(
        hf.BertModel(
            hf.BertConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
        )
    )
    assert {k: len(v[0]) for k, v in categories(bert).items()} == {"attention": 4, "feed-forward": 2, "norm": 2}


def changed(model: Model, **fields) -> dict[str, bool]:
    before = {n: p.detach().clone() for n, p in model.net.named_parameters()}
    Run(0).fit(model, world("text")["data"], HalfFineTuning(**fields), steps=3, **HOW["text"])
    assert all(p.requires_grad for p in model.net.parameters())  # given back as it was
    return {n: not torch.equal(p, before[n]) for n, p in model.net.named_parameters()}


def test_half_of_each_block_moves_and_another_half_next_round():
    first, second = changed(llama()), changed(llama(), round=1)
    for block in (0, 1):
        mine = {n: moved for n, moved in first.items() if f"layers.{block}." in n}
        assert sum(moved for n, moved in mine.items() if "self_attn" in n) == 2
        assert sum(moved for n, moved in mine.items() if "layernorm" in n) == 1
    assert sum(moved for n, moved in first.items() if "mlp" in n) == 3
    assert first["model.embed_tokens.weight"] and first["model.norm.weight"] and first != second


def test_mistakes_are_said():
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            changed(llama(), share=share)
    model = llama()
    model.net.model.layers[0].requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        changed(model)


def measure(seed: int, arm: str) -> float:
    """A model of domain a tuned on domain b: the loss on the domain it may forget."""
    at, run = world("text", seed), Run(seed)
    new = at["data"].where(np.array(at["data"]["domain"].to_pylist()) == "b")
    old = at["held_out"].where(np.array(at["held_out"]["domain"].to_pylist()) == "a")
    part = HalfFineTuning(share=0.5 if arm == "method" else 1.0, round=seed)
    model = run.fit(at["expert_a"], new, part, steps=40, **HOW["text"])
    return float(run.infer(model, old, lambda b, o: losses.per_row(losses.rowwise("causal", b, o), b, "causal")).mean())


CLAIM = Claim(
    method="half_fine_tuning",
    world="text",
    rival="full fine-tuning",
    quantity="loss on the earlier domain after tuning on another",
    better="lower",
    measure=measure,
    seeds=10,
    quick=4,
)
