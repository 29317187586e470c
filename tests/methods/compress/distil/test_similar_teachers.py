from functools import cache

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from trainlore.claims import Claim
from trainlore.methods.compress.distil.similar_teachers import SimilarTeachers, parc, shares
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_parc_is_that_of_its_authors_over_a_hundred():
    """Standardize the features, 1 - np.corrcoef of features and of one-hot labels, Spearman of the upper triangles."""
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=25)
    features = np.eye(4)[labels] @ rng.normal(size=(4, 6)) + rng.normal(size=(25, 6))
    scaled = (features - features.mean(0)) / features.std(0)
    above = np.triu_indices(25, 1)
    by_hand = spearmanr(*((1 - np.corrcoef(x))[above] for x in (scaled, np.eye(4)[labels]))).statistic
    assert parc(features, labels) == pytest.approx(by_hand, abs=1e-9) and by_hand > 0.2
    assert abs(parc(rng.normal(size=(60, 6)), rng.integers(4, size=60))) < 0.1
    assert parc(np.ones((5, 3)), np.arange(5) % 2) == 0.0


def test_weights_sum_to_one_and_sharpen():
    assert shares([0.1, 0.3, 0.2], 2.0).tolist() == pytest.approx([0.0, 0.8, 0.2])
    assert shares([0.1, 0.3, 0.2], 2.0, nearest=True).tolist() == [0.0, 1.0, 0.0]
    assert shares([0.2, 0.2], 3.0).tolist() == [0.5, 0.5]
    assert shares([-0.5, 0.5, 0.4], 16.0)[1] > 0.8


def sourced(seed, rows, labels):
    """A small network trained on these rows under these labels."""
    made = preset("mlp", seed=seed, width=32, classes=int(labels.max()) + 1)
    return Run(seed).fit(made, rows.with_(label=labels), steps=100, **HOW["digits"])


@cache
def zoo():
    """Sources of other tasks: digits 0 to 4, 5 to 9, pairs of digits, turned, mirrored, and one of shuffled labels."""
    data = world("digits")["data"]
    label, image = data["label"], data["features"].reshape(-1, 8, 8)
    turned, mirrored = (
        data.with_(features=np.ascontiguousarray(x).reshape(-1, 64))
        for x in (np.rot90(image, axes=(1, 2)), image[:, :, ::-1])
    )
    low, high = data.where(label < 5), data.where(label >= 5)
    tasks = [(low, low["label"]), (high, high["label"] - 5), (data, label // 2), (turned, label), (mirrored, label)]
    tasks.append((data, np.random.default_rng(0).permutation(label)))
    return tuple(sourced(50 + i, *task) for i, task in enumerate(tasks))


def test_loss_by_hand_and_heads_are_dropped():
    nouns, run = world("digits"), Run(0)
    part = SimilarTeachers(teachers=zoo(), unlabelled=nouns["spare"], share=0.3, temperature=2.0, ratio=2)
    kept = {}

    class Spied(SimilarTeachers):
        def loss(self, loop, s, batch, out, inner):
            value = super().loss(loop, s, batch, out, inner)
            rows = batch["similar_features"].flatten(0, 1)
            features, apart = loop.model.net[:-1](rows), 0
            for weight, source, head in zip(s["weights"], self.teachers, s["heads"], strict=True):
                wanted = (source.net(rows) / 2).softmax(1)
                apart = apart - weight * (wanted * head(features).log_softmax(1)).sum(1)
            by_hand = 0.7 * inner(batch, out) + 0.3 * apart.reshape(-1, 2).mean(1)
            torch.testing.assert_close(value, by_hand)
            kept.update(s)
            return value

    spied = Spied(**{f: getattr(part, f) for f in ("teachers", "unlabelled", "share", "temperature", "ratio")})
    before = len(nouns["model"].net.state_dict())
    student = run.fit(nouns["model"], nouns["data"].take(range(40)), spied, steps=3, **HOW["digits"])
    assert [h.out_features for h in kept["heads"]] == [5, 5, 5, 10, 10, 10]
    assert len(student.net.state_dict()) == before
    told = student.about["similar_teachers"]
    assert sum(told["weights"]) == pytest.approx(1) and told["scores"][2] == max(told["scores"])


def test_nearest_asks_the_best_source_alone():
    nouns = world("digits")
    part = SimilarTeachers(teachers=zoo(), unlabelled=nouns["spare"], nearest=True)
    student = Run(0).fit(nouns["model"], nouns["data"].take(range(40)), part, steps=1, **HOW["digits"])
    told = student.about["similar_teachers"]
    assert told["weights"] == [0.0, 0.0, 1.0, 0.0, 0.0, 0.0]  # pairs of digits, on the same images
    assert told["scores"][2] > told["scores"][5] + 0.05  # shuffled labels
    asked = []
    hooks = [m.net.register_forward_pre_hook(lambda net, args, i=i: asked.append(i)) for i, m in enumerate(zoo())]
    batch = nouns["spare"].take(range(4)).batch(range(4))
    loop = type("Loop", (), {"model": world("digits")["model"]})()
    s = {"weights": told["weights"], "heads": [torch.nn.Linear(32, 5)] * 6}
    rows = {"similar_features": batch["features"][:, None]}
    part.loss(loop, s, rows, None, lambda b, o: torch.zeros(4))
    for hook in hooks:
        hook.remove()
    assert asked == [2]


def test_bad_fields_are_named():
    nouns = world("digits")
    fine = {"teachers": zoo(), "unlabelled": nouns["spare"]}
    none = Data.of({"text": ["a"]})
    for field, value in (("share", 2.0), ("power", -1.0), ("rows", 1), ("teachers", ()), ("unlabelled", none)):
        with pytest.raises(ValueError, match="unlabelled" if field == "unlabelled" else field):
            part = SimilarTeachers(**{**fine, field: value})
            Run(0).fit(nouns["model"], nouns["data"], part, steps=1, **HOW["digits"])
    one_class = nouns["data"].where(nouns["data"]["label"] == 3)
    with pytest.raises(ValueError, match="two classes"):
        Run(0).fit(nouns["model"], one_class, SimilarTeachers(**fine), steps=1, **HOW["digits"])


def measure(seed, arm):
    """Test accuracy of a student with 30 labels and 397 unlabelled rows; its sources know other tasks on digits."""
    nouns, run = world("digits", seed), Run(seed)
    rows = nouns["data"].take(run.numpy("few").permutation(400)[:30])
    parts = [SimilarTeachers(teachers=zoo(), unlabelled=nouns["spare"])] if arm == "method" else []
    student = run.fit(nouns["model"], rows, *parts, steps=100, **HOW["digits"])
    logits = run.infer(student, nouns["test"], lambda batch, out: out)
    return float((logits.argmax(1).numpy() == nouns["test"]["label"]).mean())


CLAIM = Claim("similar_teachers", "digits", "the labels alone", "test accuracy", "higher", measure)
