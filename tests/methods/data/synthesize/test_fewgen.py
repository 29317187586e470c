from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from trainlore.claims import Claim
from trainlore.methods.data.synthesize.fewgen import FewGen, confusion, later_confusion, weighted
from trainlore.methods.measure.evaluate.accuracy import Accuracy
from trainlore.methods.train.objective.label_smoothing import LabelSmoothing
from trainlore.nouns import Data, Model
from trainlore.primitives.prefixes import under_prefixes
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world


class Bag(torch.nn.Module):
    """Classifies a text by the mean of its tokens' embeddings."""

    main_input_name = "input_ids"

    def __init__(self, tokens, classes):
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(tokens, 32), torch.nn.Linear(32, classes)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask[..., None].float()
        return self.head((self.embed(input_ids) * mask).sum(1) / mask.sum(1))


def texts(n, seed):
    table = two_domains.make(n, seed)
    return Data(table).with_(label=np.array(["ab".index(d) for d in table["domain"].to_pylist()]))


def test_confusion_is_the_textbooks():
    p = torch.rand(3, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    which = torch.tensor([2, 0])
    wanted = [[-np.log(p[which[b], b, t] / sum(p[k, b, t] for k in range(3))) for t in range(4)] for b in range(2)]
    assert np.allclose(confusion(p.log(), which), wanted)


def test_the_weights_learn_from_a_step_ahead():
    torch.manual_seed(0)
    model, ids, which = world("text")["prior"].copy(), torch.arange(5, 29).view(3, 8), torch.tensor([0, 1, 0])
    net = model.net.requires_grad_(False)
    real = torch.ones(3, 8, dtype=torch.bool)
    real[0, 5:] = False
    seen, g = (ids, real, which), nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1))
    prefixes = (0.02 * torch.randn(2, 2, 32)).requires_grad_()
    logprobs = under_prefixes(net, prefixes, ids)
    own = [logprobs[which[b], b, t] for b in range(3) for t in range(8) if real[b, t]]
    assert torch.isclose(weighted(net, prefixes, seen, None), -sum(own) / 21)
    said = [g(confusion(logprobs, which)[b, t].detach().view(1)) for b in range(3) for t in range(8) if real[b, t]]
    loss = -sum(s.exp() * p for s, p in zip(said, own)) / sum(s.exp() for s in said)
    assert torch.isclose(weighted(net, prefixes, seen, g), loss)
    later = (prefixes - 5.0 * torch.autograd.grad(loss, prefixes, retain_graph=True)[0]).detach()
    after = confusion(under_prefixes(net, later, ids), which)[real].mean()
    found = later_confusion(net, prefixes, seen, g, 5.0)
    assert torch.isclose(found, after)
    weights = g[2].weight
    (slope,) = torch.autograd.grad(found, weights)

    def moved(i, by):
        weights.data[0, i] += by
        value = later_confusion(net, prefixes, seen, g, 5.0).item()
        weights.data[0, i] -= by
        return value

    by_hand = [(moved(i, 0.05) - moved(i, -0.05)) / 0.1 for i in range(4)]
    assert np.allclose(by_hand, slope[0], rtol=0.05, atol=1e-5) and slope.abs().max() > 1e-4


def test_new_rows_belong_to_their_class_and_the_model_stays():
    data, model = texts(8, 0), world("text")["prior"]
    before = model.fingerprint
    made = FewGen(model=model, n=5, prefix=2, new=6, steps=2)(Run(0), data)
    assert list(made.text())[:8] == list(data.text()) and 8 < len(made) <= 18 and model.fingerprint == before
    for label, parent, new in list(zip(made["label"], made["parents"], made["augmented"], strict=True))[8:]:
        assert label == data["label"][parent] and new == 1
    assert len(set(made.text())) == len(made) and FewGen(model=model, n=0)(Run(0), data) is data


def test_bad_input_is_named():
    model, data = world("text")["prior"], texts(4, 0)
    for fields, name in (({"n": -1}, "n must"), ({"temperature": 0.0}, "temperature"), ({"label": "mood"}, "'mood'")):
        with pytest.raises(ValueError, match=name):
            FewGen(model=model, **fields)(data)
    with pytest.raises(ValueError, match="one value '0'"):
        FewGen(model=model)(data.where(data["label"] == 0))
    with pytest.raises(ValueError, match="not a classifier"):
        FewGen(model=Model(Bag(8, 2), "classifier"))(data)


@cache
def writer():
    """A language model of both domains."""
    rows, how = Data(two_domains.make(600, 77)), {"batch_size": 16, "lr": 3e-3, "precision": "fp32"}
    return Run(5).fit(world("text")["teacher"], rows, steps=150, **how)


def measure(seed: int, arm: str) -> float:
    run, rows = Run(seed), texts(20, 5000 + seed)
    tokenizer, how = two_domains.tokenizer(), {"batch_size": 16, "lr": 1e-2, "precision": "fp32"}
    with run.global_rng("net"):
        model = Model(Bag(len(tokenizer), 2), "classifier", tokenizer)
    run.fit(model, rows, steps=50, **how)
    parts = ()
    if arm == "method":  # as the authors do: smoothed labels, and of the new rows those the classifier agrees with
        made = FewGen(model=writer(), n=40, prefix=4, new=24, steps=40, batch_size=4, lr=0.05)(run, rows)
        made, parts = made.where(made["augmented"] == 1), (LabelSmoothing(amount=0.15),)
        sure = run.infer(model, made, lambda batch, out: out.softmax(-1)).numpy()
        rows = made.where(sure[np.arange(len(made)), made["label"]] > 0.8)
    run.fit(model, rows, *parts, steps=50, **how)
    return Accuracy()(run, model, texts(400, 2)).value


CLAIM = Claim(
    method="fewgen",
    world="text",
    rival="the rows alone, at the same number of steps of the classifier",
    quantity="test accuracy of a bag of words, trained on 10 rows of each of two domains and then on new ones",
    better="higher",
    measure=measure,
    seeds=10,
    quick=1,
)
