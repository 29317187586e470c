import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.train.objective.masked_thought import MaskedThought, masked
from trainlore.nouns import Data
from trainlore.primitives.losses import per_row, rowwise
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


def test_only_the_answer_is_covered_and_at_the_rate():
    ids = torch.arange(6).expand(20000, 6).contiguous() + 10
    labels = torch.where(torch.arange(6) < 2, -100, ids)
    got = masked(ids, labels, 0.3, 7, torch.Generator().manual_seed(0))
    hit = got == 7
    assert not hit[:, :2].any() and torch.equal(got[~hit], ids[~hit])
    assert hit[:, 2:].float().mean(0).tolist() == pytest.approx([0.3] * 4, abs=0.015)
    assert torch.equal(masked(ids, labels, 0.0, 7, torch.Generator()), ids)


class Loop:
    def __init__(self, model, t, steps=100):
        self.model, self.t, self.steps, self.done = model, t, steps, t / steps

    def rng(self, *key):
        return Run(0).rng(*key)


@pytest.mark.parametrize(("t", "rate"), [(0, 0.0), (33, 0.4 * 33 / (100 * 2 / 3 + 1)), (90, 0.4)])
def test_the_rate_grows_over_two_thirds_of_training(t, rate):
    """The authors' trainer: max_rate * step / (max_steps * warmup + 1), capped."""
    model = world("sums")["model"]
    ids = torch.full((400, 50), 5)
    batch = {"input_ids": ids, "labels": ids}
    made = MaskedThought().batch(Loop(model, t), {}, batch)
    assert (made["input_ids"] != 5).float().mean().item() == pytest.approx(rate, abs=0.01)
    assert made["labels"] is batch["labels"]
    assert ((made["input_ids"] == 5) | (made["input_ids"] == model.tokenizer.pad_token_id)).all()


def test_random_cover_uses_the_vocabulary():
    model = world("sums")["model"]
    ids = torch.full((400, 50), 5)
    made = MaskedThought(cover="random", warmup=0.0).batch(Loop(model, 0), {}, {"input_ids": ids, "labels": ids})[
        "input_ids"
    ]
    assert len(made.unique()) == len(model.tokenizer)
    assert (made != 5).float().mean().item() == pytest.approx(0.4 * (1 - 1 / len(model.tokenizer)), abs=0.01)


@pytest.mark.parametrize(("field", "value"), [("share", 1.0), ("warmup", -1.0), ("cover", "noise")])
def test_bad_fields_are_named(field, value):
    nouns = world("sums")
    with pytest.raises(ValueError, match=field):
        Run(0).fit(nouns["model"], nouns["data"], MaskedThought(**{field: value}), steps=1, **HOW["sums"])


def chains(n, seed):
    """ "3+1+4+2=" answered step by step, "4=8=10"."""
    terms = Run(seed).numpy("chains").integers(0, 5, (n, 4))
    return Data.of(
        {
            "prompt": ["+".join(map(str, r)) + "=" for r in terms],
            "completion": ["=".join(map(str, r[1:])) for r in np.cumsum(terms, 1)],
        }
    )


def measure(seed, arm):
    """Nats a token of the right answer when three in ten of its tokens so far are wrong."""
    nouns, run = world("sums", seed), Run(seed)
    parts = [MaskedThought()] if arm == "method" else []
    model = run.fit(nouns["model"], chains(300, 0), *parts, steps=120, **HOW["sums"])
    batch, rng = model.encode(chains(100, 1)).batch(range(100), model), run.rng("wrong")
    wrong = torch.randint(4, 14, batch["input_ids"].shape, generator=rng)  # digits
    batch["input_ids"] = masked(batch["input_ids"], batch["labels"], 0.3, wrong, rng)
    with torch.no_grad():
        return float(per_row(rowwise("causal", batch, model(batch)), batch, "causal").mean())


CLAIM = Claim(
    "masked_thought", "sums", "plain fine-tuning", "nats a token after wrong steps", "lower", measure, seeds=20
)
