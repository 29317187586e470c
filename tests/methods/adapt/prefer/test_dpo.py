import math

import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.adapt.prefer.dpo import DPO, answer_logprobs, both, dpo_loss
from trainlore.runs import Run
from trainlore.worlds.tiny import HOW, world


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_the_papers_equation_seven(smoothing):
    policy, reference = torch.randn(6, 2).double() - 5, torch.randn(6, 2).double() - 5
    got = dpo_loss(policy, reference, 0.3, smoothing)
    for i in range(6):
        m = 0.3 * ((policy[i, 0] - reference[i, 0]) - (policy[i, 1] - reference[i, 1])).item()
        good, bad = math.log(1 / (1 + math.exp(-m))), math.log(1 / (1 + math.exp(m)))
        assert got[i].item() == pytest.approx(-(1 - smoothing) * good - smoothing * bad, abs=1e-12)
    assert dpo_loss(policy, policy, 0.1).tolist() == pytest.approx([math.log(2)] * 6)  # where training begins


def test_answers_are_summed_over_their_own_tokens():
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[-100, -100, 3, 4, 1], [-100, 2, 6, -100, -100]])
    got = answer_logprobs("causal", logits, labels)
    for row in range(2):
        by_hand = sum(logits[row, i - 1].log_softmax(0)[t] for i, t in enumerate(labels[row].tolist()) if t >= 0)
        assert got[row].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_both_sides_lie_over_each_other_at_one_width():
    batch = {
        f"{side}_{name}": torch.full((2, n), n)
        for side, n in (("chosen", 3), ("rejected", 5))
        for name in ("input_ids", "attention_mask", "labels")
    }
    made = both(batch, pad=9)
    assert made["input_ids"].tolist() == [[3, 3, 3, 9, 9]] * 2 + [[5] * 5] * 2
    assert made["labels"][0].tolist() == [3, 3, 3, -100, -100] and made["attention_mask"][0].tolist() == [3, 3, 3, 0, 0]


def test_the_reference_is_asked_once_and_none_means_where_it_begins():
    nouns = world("pairs")
    rows, asked = nouns["data"].take(range(16)), []
    nouns["reference"].net.register_forward_pre_hook(lambda *given: asked.append(1))
    run = Run(0)
    first = run.fit(nouns["model"], rows, DPO(reference=nouns["reference"]), steps=8, **HOW["pairs"])
    assert len(asked) == 2  # 16 chosen, then 16 rejected; four epochs
    assert first.about["curve"]["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    second = Run(0).fit(world("pairs")["model"], rows, DPO(), steps=8, **HOW["pairs"])
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(("field", "value"), [("beta", 0.0), ("smoothing", 0.5)])
def test_bad_fields_are_named(field, value):
    nouns = world("pairs")
    with pytest.raises(ValueError, match=field):
        Run(0).fit(nouns["model"], nouns["data"], DPO(**{field: value}), steps=1, **HOW["pairs"])
    with pytest.raises(ValueError, match="chosen_labels"):
        Run(0).fit(nouns["model"], nouns["data"].without("chosen_labels"), DPO(), steps=1, **HOW["pairs"])


def measure(seed, arm):
    """Share of unseen pairs whose chosen answer gains more on the reference than the rejected one; rival: tuning on the chosen."""
    nouns, run = world("pairs", seed), Run(seed)
    train, test = nouns["data"].take(range(80)), nouns["data"].take(range(80, 120))
    before = score(run, nouns["reference"], test)
    if arm == "method":
        model = run.fit(nouns["model"], train, DPO(), steps=40, **HOW["pairs"])
    else:
        chosen = train.new({name: train[f"chosen_{name}"] for name in ("input_ids", "labels")})
        model = run.fit(nouns["model"], chosen, steps=40, **HOW["pairs"])
    gain = score(run, model, test) - before
    return float((gain[:, 0] > gain[:, 1]).float().mean())


def score(run, model, data):
    sides = [
        data.new({name: data[f"{side}_{name}"] for name in ("input_ids", "labels")}) for side in ("chosen", "rejected")
    ]
    return torch.stack(
        [run.infer(model, d, lambda batch, out: answer_logprobs("causal", out, batch["labels"])) for d in sides], 1
    )


CLAIM = Claim("dpo", "pairs", "tuning on the chosen answers", "unseen pairs ordered rightly", "higher", measure)
