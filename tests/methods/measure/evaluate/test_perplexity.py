import math

import pytest

from trainlore.claims import Claim
from trainlore.methods.measure.evaluate.perplexity import Perplexity
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_perplexity_is_that_of_the_whole_text_by_hand():
    nouns = world("text")
    model, data = nouns["prior"], nouns["held_out"].take(range(9))
    report = Run(0).step(Perplexity(), model, data)
    total, tokens, by = 0.0, 0, {}
    for i, (text, domain) in enumerate(zip(data.text("text"), data["domain"].to_pylist(), strict=True)):
        batch = data.batch([i], model)
        logp, ids = model(batch)[0].log_softmax(-1), [t for t in batch["labels"][0].tolist() if t >= 0]
        nats = -sum(logp[j - 1, t].item() for j, t in enumerate(ids) if j)
        assert report["nats"].values[i] == pytest.approx(nats / (len(ids) - 1), abs=1e-4)
        assert report["bits_per_byte"].values[i] == pytest.approx(nats / math.log(2) / len(text.encode()), abs=1e-4)
        total, tokens = total + nats, tokens + len(ids) - 1
        mine = by.setdefault(domain, [0.0, 0])
        by[domain] = [mine[0] + nats, mine[1] + len(ids) - 1]
    assert report.value == pytest.approx(total / tokens, abs=1e-4)
    notes = report["nats"].notes
    assert notes["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-3) and notes["tokens"] == tokens
    assert notes["perplexity_by_domain"] == pytest.approx({d: math.exp(n / t) for d, (n, t) in by.items()}, rel=1e-3)


def test_a_network_that_knows_nothing_is_as_surprised_as_its_vocabulary():
    nouns = world("text")
    for p in nouns["model"].net.parameters():
        p.data.zero_()
    report = Run(0).step(Perplexity(), nouns["model"], nouns["held_out"])
    assert report["nats"].notes["perplexity"] == pytest.approx(nouns["model"].net.config.vocab_size, rel=1e-4)


def test_only_language_models():
    with pytest.raises(ValueError, match="language"):
        Perplexity()(world("digits")["model"], world("digits")["test"])
    nouns = world("text")
    with pytest.raises(ValueError, match="token"):
        Perplexity()(nouns["model"], nouns["held_out"].new({"input_ids": [[5], [6]], "labels": [[5], [6]]}))


def measure(seed, arm):
    """Held-out perplexity after training, against before: the figure must tell them apart."""
    nouns, run = world("text", seed), Run(seed)
    model = run.fit(nouns["model"], nouns["data"], steps=30, **HOW["text"]) if arm == "method" else nouns["model"]
    return run.step(Perplexity(), model, nouns["held_out"]).value


CLAIM = Claim("perplexity", "text", "untrained model", "held-out nats a token", "lower", measure)
