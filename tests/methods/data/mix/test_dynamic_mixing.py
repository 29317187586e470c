"""Dynamic mixing: the step of the weights, gate loads counted by hand, and copies that lose weight."""

import math

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.dynamic_mixing import DynamicMixing, differences, gate_loads, router
from trainlore.methods.data.mix.uniform_mixture import UniformMixture
from trainlore.nouns import Data, Model
from trainlore.primitives.domains import domain_losses, domains
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_differences_are_means_of_distances_with_the_zero_to_itself():
    g = np.random.default_rng(0).random((4, 3))
    by_hand = [sum(math.dist(g[i], g[j]) for j in range(4)) / 4 for i in range(4)]
    assert differences(torch.tensor(g)).tolist() == pytest.approx(by_hand)


def moe(seed=0):
    """A Mixtral of two layers, four experts, two a token."""
    from transformers import MixtralConfig, MixtralForCausalLM

    tokenizer = world("text")["model"].tokenizer
    config = MixtralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
    )
    with Run(seed).global_rng("weights"):
        return Model(MixtralForCausalLM(config).eval(), "causal", tokenizer)


def test_gate_loads_count_the_experts_of_real_tokens():
    model, data = moe(), world("text")["data"].take(range(6))
    gate = router(model.net)
    assert gate is model.net.model.layers[1].mlp.gate and router(world("digits")["model"].net) is None
    loads = gate_loads(Run(0), model, data, gate)
    values, offsets = data.lists("input_ids")
    for i in range(6):
        ids = torch.from_numpy(values[offsets[i] : offsets[i + 1]].astype(np.int64))[None]
        with torch.no_grad():
            logits = model.net(input_ids=ids, output_router_logits=True).router_logits[-1]
        by_hand = np.zeros(4)
        for token in logits.topk(2, -1).indices.tolist():
            for expert in token:
                by_hand[expert] += 1
        assert loads[i].tolist() == by_hand.tolist()


def test_a_mixture_of_experts_trains_with_it():
    data = world("text")["data"]
    data = data.with_(domain=[f"{d}{i % 2}" for i, d in enumerate(data["domain"].to_pylist())])
    run = Run(0)
    run.fit(moe(), data, DynamicMixing(every=2), steps=4, **HOW["text"])
    assert not run.effects[-1]["dead"]


class Fake:
    def __init__(self, data, model, t=0):
        self.data, self.model, self.t, self.run = data, model, t, Run(0)

    def rng(self, *key):
        return self.run.rng(*key)


def test_a_domain_given_twice_gets_less_each():
    nouns = world("digits")
    label = np.asarray(nouns["data"]["label"])
    data = nouns["data"].with_(domain=["a" if y < 5 and i % 2 else "b" if y < 5 else "c" for i, y in enumerate(label)])
    part, loop = DynamicMixing(every=5), Fake(data, nouns["teacher"])
    s = part.start(loop)
    assert s["share"].tolist() == pytest.approx([1 / 3] * 3)
    loop.t = 5
    odds = part.odds(loop, s)
    assert s["share"][2] > 1.2 * s["share"][:2].max() and float(odds[label >= 5].sum()) == pytest.approx(
        float(s["share"][2])
    )
    loop.t = 6
    assert part.odds(loop, s) is odds


@pytest.mark.parametrize("fields", [{"floor": 1.5}, {"eta": -1.0}, {"every": 0}, {"rows": 0}, {"by": "nothing"}])
def test_bad_fields_are_named(fields):
    data = Data.of({"domain": ["a", "b", "c"]})
    with pytest.raises(ValueError, match=next(iter(fields)) if "by" not in fields else "nothing"):
        DynamicMixing(**fields).start(Fake(data, None))
    with pytest.raises(ValueError, match="three or more"):
        DynamicMixing().start(Fake(data.take([0, 1]), None))


def measure(seed: int, arm: str) -> float:
    """The mean held-out loss of two domains, one of which comes under three names."""
    nouns, run = world("text", seed), Run(seed)
    domain = [f"a{i % 3}" if d == "a" else d for i, d in enumerate(nouns["data"]["domain"].to_pylist())]
    part = DynamicMixing(every=10) if arm == "method" else UniformMixture()
    model = run.fit(nouns["model"], nouns["data"].with_(domain=domain), part, steps=60, **HOW["text"])
    names, code = domains(nouns["held_out"], "domain", "claim")
    return float(domain_losses(run, model, nouns["held_out"], code, len(names)).mean())


CLAIM = Claim(
    method="dynamic_mixing",
    world="text",
    rival="uniform_mixture",
    quantity="mean over two domains of the held-out loss, one of them given under three names",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
