import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.audit.forgetting import Forgetting
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_differences_by_row_weighed_by_tokens():
    nouns, run = world("text"), Run(0)
    data, now, before = nouns["held_out"], nouns["expert_a"], nouns["prior"]
    report = run.step(Forgetting(before=before), now, data)["forgetting"]
    total, tokens = 0.0, 0
    for i in (0, 7):
        batch = data.batch([i], now)
        counted = (batch["labels"][:, 1:] != -100).sum().item()
        change = 0.0
        for sign, model in ((1, now), (-1, before)):
            logp = model(batch)[0].log_softmax(-1)
            ids = batch["labels"][0].tolist()
            change -= sign * sum(logp[j - 1, t].item() for j, t in enumerate(ids) if j and t >= 0)
        assert report.values[i] == pytest.approx(change / counted, abs=1e-4) and report.weights[i] == counted
        total, tokens = total + change, tokens + counted
    assert report.value == pytest.approx(np.average(report.values, weights=report.weights))
    assert report.better == "lower" and set(report.by("domain")) == {"a", "b"}


def test_a_model_has_forgotten_nothing_against_itself():
    nouns = world("digits")
    report = Run(0).step(Forgetting(before=nouns["teacher"]), nouns["teacher"].copy(), nouns["test"])
    assert report.value == 0 and report["accuracy_lost"].value == 0 and report["share_worse"].value == 0


def test_kinds_must_agree():
    with pytest.raises(ValueError, match="before"):
        Forgetting(before=world("digits")["model"])(world("text")["model"], world("text")["held_out"])


def measure(seed, arm):
    """Forgetting shown of domain b: after tuning on domain a, or with no tuning at all."""
    nouns, run = world("text", seed), Run(seed)
    mine = nouns["data"].where([d == "a" for d in nouns["data"]["domain"].to_pylist()])
    model = nouns["prior"].copy()
    if arm == "method":
        model = run.fit(model, mine, steps=40, **HOW["text"])
    return run.step(Forgetting(before=nouns["prior"]), model, nouns["held_out"])["forgetting"].by("domain")["b"]


CLAIM = Claim("forgetting", "text", "no tuning", "nats a token lost on the domain left out", "higher", measure)
