from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from trainlore.claims import Claim
from trainlore.methods.compress.distil.deit_lt import DeiTLT, class_weights
from trainlore.nouns import Model
from trainlore.nouns.hugging import preset
from trainlore.primitives.heads import Twin
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world

HOW_VIT = {"batch_size": 32, "lr": 3e-3, "precision": "fp32"}


def test_weights_are_the_authors_but_for_their_scale():
    """(1 - beta) / (1 - beta^n), over their sum, times the classes; ours are scaled to mean 1 over the rows."""
    count = np.array([5000, 500, 50])
    theirs = (1 - 0.9999) / (1 - 0.9999**count)
    theirs = theirs / theirs.sum() * 3
    got = class_weights(torch.tensor(count), 0.9999)
    assert np.allclose(got / got[0], theirs / theirs[0], rtol=1e-4)
    assert (got * torch.tensor(count)).sum() / count.sum() == pytest.approx(1, rel=1e-5)
    assert class_weights(torch.tensor([9, 1, 0]), 0.0).tolist() == pytest.approx([10 / 10] * 3)
    assert class_weights(torch.tensor([8, 2]), 1.0).tolist() == pytest.approx([10 / 16, 10 / 4])


def images(data):
    """Digits as a vision transformer reads them, and as the teacher does."""
    return data.with_(pixel_values=data["features"].reshape(-1, 1, 8, 8).tolist())


@cache
def tailed():
    """Digits of which class k has about 90 * 0.02^(k/9) rows, and the balanced test rows."""
    from trainlore.worlds import data

    train, label = data("digits/train"), data("digits/train")["label"]
    keep = [np.flatnonzero(label == k)[: round(90 * 0.02 ** (k / 9))] for k in range(10)]
    return images(train.take(np.sort(np.concatenate(keep)))), images(world("digits")["test"])


@cache
def teacher():
    """A network trained on the same rows with rare classes weighed up."""
    rows, _ = tailed()
    weight = class_weights(torch.bincount(torch.tensor(rows["label"])), 0.999).numpy()
    how = {**HOW["digits"], "steps": 200}
    return Run(5).fit(preset("mlp", seed=5, width=64), rows.with_(weight=weight[rows["label"]]), **how)


def test_a_vision_transformer_leaves_with_both_heads_and_loads(tmp_path):
    rows, test = tailed()
    model = preset("vit-digits", seed=0, num_hidden_layers=1)
    run = Run(0)
    run.fit(model, rows, DeiTLT(teacher=teacher(), late=0.5), steps=4, **HOW_VIT)
    assert run.effects[-1]["did"]["loss"] > 1e-3
    out = model.net(pixel_values=test.batch(range(4), model)["pixel_values"])
    torch.testing.assert_close(out.logits, (out.cls_logits + out.distillation_logits) / 2)
    assert not torch.equal(out.cls_logits, out.distillation_logits)
    again = Model.of(model.save(tmp_path / "vit"))
    torch.testing.assert_close(again(test.batch(range(4), again)), out.logits)
    run.fit(again, rows, DeiTLT(teacher=teacher()), steps=1, **HOW_VIT)  # what has the token is trained on


def test_loss_by_hand_and_late_weights():
    rows, _ = tailed()
    part = DeiTLT(teacher=teacher(), alpha=0.3, late=0.9)
    loop = type("Loop", (), {"done": 0.5, "model": Model(Twin(torch.nn.Linear(64, 10)))})()
    batch = rows.batch(range(20))
    s = {"said": [torch.randn(20, 10), torch.randn(20, 10)], "weight": torch.arange(10.0)}
    mine, distilled = s["said"]
    answer = teacher()(batch).argmax(1)
    for done, weight in ((0.5, torch.ones(20)), (0.9, answer.float())):
        loop.done, s["said"] = done, [mine, distilled]
        got = part.loss(loop, s, batch, None, lambda b, o: F.cross_entropy(o, b["labels"], reduction="none"))
        apart = torch.stack([-distilled[i].log_softmax(0)[answer[i]] for i in range(20)])
        by_hand = 0.7 * F.cross_entropy(mine, batch["labels"], reduction="none") + 0.3 * weight * apart
        torch.testing.assert_close(got, by_hand)


def test_other_networks_get_their_two_heads_folded():
    nouns, kept = world("digits"), {}

    class Look(DeiTLT):
        def detach(self, loop):
            batch = loop.data.batch(range(8))
            kept["before"] = loop.model(batch)
            super().detach(loop)
            kept["after"] = loop.model(batch)

    shape = {k: v.shape for k, v in nouns["model"].net.state_dict().items()}
    part = Look(teacher=nouns["teacher"], count="teacher", late=0.3)
    model = Run(0).fit(nouns["model"], nouns["data"], part, steps=10, **HOW["digits"])
    assert {k: v.shape for k, v in model.net.state_dict().items()} == shape
    torch.testing.assert_close(kept["before"], kept["after"])


def test_bad_fields_are_named():
    nouns = world("digits")
    for field, value in (("alpha", 1.5), ("late", -1.0), ("count", "rows"), ("beta", 2.0)):
        part = DeiTLT(**{"teacher": nouns["teacher"], field: value})
        with pytest.raises(ValueError, match=field):
            Run(0).fit(nouns["model"], nouns["data"], part, steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match="teacher answers"):
        odd = DeiTLT(teacher=Model(torch.nn.Linear(64, 7)))
        Run(0).fit(nouns["model"], nouns["data"], odd, steps=1, **HOW["digits"])
    with pytest.raises(ValueError, match="classifiers"):
        causal = Model(torch.nn.Linear(64, 7), "causal")
        DeiTLT(teacher=causal).attach(type("Loop", (), {"model": causal}))


def measure(seed, arm):
    """Accuracy on balanced test rows, the mean over classes, of a small vision transformer trained on long-tailed rows."""
    rows, test = tailed()
    run = Run(seed)
    parts = [DeiTLT(teacher=teacher())] if arm == "method" else []
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = run.fit(preset("vit-digits", seed=seed, **shape), rows, *parts, steps=150, **HOW_VIT)
    right = run.infer(model, test, lambda batch, out: (out.argmax(1) == batch["labels"]).float()).numpy()
    return float(np.mean([right[test["label"] == k].mean() for k in range(10)]))


CLAIM = Claim("deit_lt", "digits", "the labels alone", "accuracy averaged over classes", "higher", measure, quick=2)
