from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf

from trainlore.claims import Claim
from trainlore.methods.start.vocabulary.constrained_word2vec import ConstrainedWord2Vec, Mixture, hull
from trainlore.runs import Run
from trainlore.worlds.tiny import world


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_hull_against_a_loop():
    logits, rows = rand(3, 5), rand(5, 4, seed=1)
    for i in range(3):
        weights = [torch.exp(x) / sum(torch.exp(y) for y in logits[i]) for x in logits[i]]
        torch.testing.assert_close(hull(logits, rows)[i], sum(w * r for w, r in zip(weights, rows, strict=True)))


@pytest.mark.parametrize("factor", [2, 100])
def test_only_new_rows_are_mixed_and_learned(factor):
    old = rand(6, 3)
    mixture = Mixture(old, 4, factor, torch.Generator().manual_seed(0)).double()
    assert [tuple(p.shape) for p in mixture.parameters()] == ([(4, 2), (2, 6)] if factor == 2 else [(4, 6)])
    ids = torch.tensor([[0, 9], [7, 5]])
    torch.testing.assert_close(mixture(ids), torch.cat([old, mixture.rows()])[ids])
    mixture(torch.tensor([1, 8])).sum().backward()
    assert mixture.weights[0].grad[2].any() and not mixture.weights[0].grad[[0, 1, 3]].any()


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_in_the_hull_and_the_model_saves(tied, tmp_path):
    from scipy.optimize import nnls

    at = world("text")
    model = at["model"]
    if not tied:
        config = hf.LlamaConfig(**{**model.net.config.to_dict(), "tie_word_embeddings": False})
        model.net = hf.LlamaForCausalLM(config)
    before = [e.weight.detach().clone() for e in (model.net.get_input_embeddings(), model.net.get_output_embeddings())]
    model = ConstrainedWord2Vec(corpus=at["target"], new=10, epochs=1, batch_size=256)(Run(0), model)
    for old, now in zip(before, (model.net.get_input_embeddings(), model.net.get_output_embeddings()), strict=True):
        assert torch.equal(now.weight[:384], old) and len(now.weight) == 394 == model.net.config.vocab_size
        for row in now.weight[384:]:  # nonnegative weights that sum to one give it
            matrix = torch.cat([old, torch.ones(384, 1)], 1).double().T.numpy()
            assert nnls(matrix, np.append(row.detach().double().numpy(), 1.0))[1] < 1e-4
    different = not torch.equal(
        *(e.weight for e in (model.net.get_input_embeddings(), model.net.get_output_embeddings()))
    )
    assert different != tied
    model.save(tmp_path / "m")


@pytest.mark.parametrize("field", ["new", "window", "negatives", "batch_size", "factor"])
def test_bad_fields_are_named(field):
    at = world("text")
    with pytest.raises(ValueError, match=field):
        ConstrainedWord2Vec(corpus=at["target"], **{field: 0})(Run(0), at["model"])
    with pytest.raises(ValueError, match="occurs twice"):
        ConstrainedWord2Vec(corpus=at["target"].take([0]).with_(text=["ab"]))(Run(0), at["model"])


def measure(seed: int, arm: str) -> float:
    """Share of places in old text where the greedy choice is what it was, right after the expansion."""
    at, run = world("text", seed), Run(seed)
    model, rows = at["teacher"], at["held_out"]
    choice = lambda batch, out: torch.nn.functional.pad(out.argmax(-1), (0, 200 - out.shape[1]), value=-1)
    before = run.infer(model, rows, choice)
    model = run.step(ConstrainedWord2Vec(corpus=at["target"], new=40, epochs=1, batch_size=512), model)
    if arm == "rival":
        weight = model.net.get_input_embeddings().weight
        with torch.no_grad():
            weight[384:] = torch.randn(weight[384:].shape, generator=run.rng("rows")) * weight[:384].std()
    after = run.infer(model, rows, choice)
    return float((after == before)[before >= 0].float().mean())


CLAIM = Claim(
    method="constrained_word2vec",
    world="text",
    rival="random rows of the old ones' spread",
    quantity="greedy choices kept on old text",
    better="higher",
    measure=measure,
    seeds=10,
    quick=3,
)
