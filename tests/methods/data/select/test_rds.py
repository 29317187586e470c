from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.select.random_rows import RandomRows
from trainlore.methods.data.select.rds import RDS, position_weighted, turns
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, llama, world


def test_later_tokens_weigh_more_and_padding_nothing():
    hidden = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = position_weighted(hidden, torch.tensor([[1.0, 1, 1, 0], [1, 1, 1, 1]]))
    for row, length in ((0, 3), (1, 4)):  # 1/6, 2/6, 3/6 and 1/10 .. 4/10
        want = sum((i + 1) / (length * (length + 1) / 2) * hidden[row, i] for i in range(length))
        assert torch.allclose(got[row], want)


def test_queries_take_turns_as_in_a_plain_loop():
    similarity = np.random.default_rng(0).integers(0, 5, (9, 3)) / 4  # with ties
    lists = [sorted(range(9), key=lambda r, q=q: -similarity[r, q]) for q in range(3)]
    taken = []
    while len(taken) < 9:
        for mine in lists:
            row = mine.pop(0)
            if row not in taken:
                taken.append(row)
    assert np.argsort(turns(similarity)).tolist() == taken


def test_rows_are_those_of_the_whole_models_hidden_states_at_any_batch_size():
    nouns = world("text")
    data, target, encoder = nouns["data"].take(range(40)), nouns["target"].take(range(3)), nouns["prior"]

    def embedded(rows):
        out = []
        for i in range(len(rows)):
            ids = torch.from_numpy(rows.lists("input_ids")[0][slice(*rows.lists("input_ids")[1][i : i + 2])])[
                None
            ].long()
            with torch.no_grad():
                hidden = encoder.net(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
            weight = torch.arange(1, len(hidden) + 1).float()
            out.append((weight / weight.sum()) @ hidden)
        return torch.nn.functional.normalize(torch.stack(out), dim=1)

    near = (embedded(data) @ embedded(target).T).numpy()
    for size in (1, 64):
        kept = RDS(target=target, encoder=encoder, keep=1.0, size=size)(data)
        assert np.allclose(kept["rds"], near.max(1), atol=1e-5)
    assert (
        RDS(target=target, encoder=encoder, keep=0.1)(data).ids.tolist()
        == np.sort(np.argsort(turns(near))[:4]).tolist()
    )
    two = target.with_(task=["x", "y", "x"])
    merged = np.stack([near[:, [0, 2]].max(1), near[:, 1]], 1)
    kept = RDS(target=two, encoder=encoder, keep=0.1, task="task")(data)
    assert kept.ids.tolist() == np.sort(np.argsort(turns(merged))[:4]).tolist()


def test_a_budget_in_tokens_and_bad_input():
    nouns = world("text")
    target, encoder, data = nouns["target"], nouns["prior"], nouns["data"]
    kept = RDS(target=target, encoder=encoder, tokens=300)(data)
    assert 200 < len(kept.lists("input_ids")[0]) <= 300
    for fields, data_, message in (
        ({"encoder": preset("mlp")}, data, "reads features"),
        ({"keep": 0.0}, data, "keep=0"),
        ({"task": "kind"}, data, "'kind'"),
        ({"target": target.take([])}, data, "rds's target was given no rows"),
        ({}, Data.take(data, []), "no rows"),
    ):
        with pytest.raises(ValueError, match=message):
            RDS(**{"target": target, "encoder": encoder, **fields})(data_)


@cache
def text_world():
    nouns = world("text")
    return nouns, nouns["held_out"].where([d == "b" for d in nouns["held_out"]["domain"].to_pylist()])


def measure(seed: int, arm: str) -> float:
    """Loss on the task's domain of a model that starts where the encoder stands, tuned on a quarter of the tokens."""
    (nouns, wanted), run = text_world(), Run(seed)
    few = nouns["target"].take(run.numpy("examples").permutation(60)[:10])
    pick = RDS(target=few, encoder=nouns["prior"], tokens=0.25) if arm == "method" else RandomRows(tokens=0.25)
    model = run.fit(llama(seed), pick(run, nouns["data"]), steps=40, **HOW["text"])
    return run.infer(model, wanted, lambda b, out: per_row(rowwise("causal", b, out), b, "causal")).mean().item()


CLAIM = Claim(
    method="rds",
    world="text",
    rival="random_rows at the same budget in tokens",
    quantity="held-out loss on the target domain",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
