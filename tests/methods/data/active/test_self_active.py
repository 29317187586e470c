from __future__ import annotations

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.active.self_active import SelfActive, _continued, prompts
from trainlore.methods.measure.evaluate.held_out_loss import HeldOutLoss
from trainlore.nouns import Data, Model
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import llama, world


def test_a_prompt_loses_its_last_words():
    # the authors': int(0.15 n) + 1
    starts, cut = prompts(["a b c d e f g h i j", "a b", "a", "a  b\nc d e f g"], 0.15)
    assert starts == ["a b c d e f g h", "a", "", "a b c d e"] and cut == [2, 1, 1, 2]


class Watched(Run):
    """A run that remembers what was trained on, and from which weights."""

    def fit(self, model, rows, *parts, **how):
        self.fits = [*getattr(self, "fits", []), (model.fingerprint, list(rows.text("text")))]
        return super().fit(model, rows, *parts, **how)


def test_rounds_start_alike_and_what_is_held_out_comes_back_rewritten():
    at, run = world("text"), Watched(0)
    texts, start = list(at["data"].text("text")), at["model"].fingerprint
    model = SelfActive(rounds=3, steps=4, batch_size=8, most=6)(run, at["model"], at["data"])
    assert [f for f, _ in run.fits] == [start] * 3
    first, second, third = (set(t) for _, t in run.fits)
    assert len(run.fits[0][1]) == 240 and first <= set(texts)
    made = [t for t in second if t not in texts]
    assert any(t not in texts and t not in second for t in third)
    assert 0 < len(made) <= 12 and model.about["self_active"][0]["made"] == 12
    starts, _ = prompts([t for t in texts if t not in first], 0.15)
    assert all(any(t.startswith(s + " ") for s in starts) for t in made)


def test_a_causal_network_goes_on_with_its_likeliest_words():
    at = world("text")
    starts = [" ".join(t.split()[:4]) for t in list(at["held_out"].text("text"))[:3]]
    made = _continued(Run(0), at["teacher"], starts, [2, 3, 2])
    for start, text, count in zip(starts, made, (2, 3, 2), strict=True):
        (whole,) = Run(1).generate(at["teacher"], [start], 40, 0.0)
        assert text.split() == start.split() + whole.split()[:count]


def masked():
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = two_domains.tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<mask>"})
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    with Run(0).global_rng("weights"):
        return Model(BertForMaskedLM(config).eval(), "masked", tokenizer)


def test_a_masked_network_fills_a_mask_at_the_end_again_and_again():
    model = masked()
    tok, text = model.tokenizer, ["kamu gale", "nera"]
    made = _continued(Run(0), model, text, [2, 1])
    for start, got, count in zip(text, made, (2, 1), strict=True):
        for _ in range(count):
            ids = torch.tensor([tok(f"{start} <mask>")["input_ids"]])
            logits = model.net(input_ids=ids).logits[0, ids[0].tolist().index(tok.mask_token_id)]
            logits[tok.all_special_ids] = -torch.inf
            start = f"{start} {tok.decode([int(logits.argmax())]).strip()}".strip()
        assert got == start


def test_bad_input_is_named():
    at = world("text")
    for fields, says in (
        ({"rounds": 0}, "rounds=0"),
        ({"held_out": 1.0}, "held_out=1"),
        ({"cut": 1.0}, "cut=1"),
        ({"most": 0}, "most=0"),
    ):
        with pytest.raises(ValueError, match=says):
            SelfActive(**fields)(at["model"], at["data"])
    with pytest.raises(ValueError, match="at least 2 rows"):
        SelfActive()(at["model"], at["data"].take([0]))
    with pytest.raises(ValueError, match="'text'"):
        SelfActive()(at["model"], Data.of({"label": np.array([1])}))
    digits = world("digits")
    with pytest.raises(ValueError, match="classifier"):
        SelfActive()(digits["model"], at["data"])


def measure(seed: int, arm: str) -> float:
    """Loss on other texts of two small domains, after the same steps on the texts alone or with rewritten ones."""
    run, model = Run(seed), llama(seed)
    rows = Data(two_domains.make(50, seed=seed))
    how = {"steps": 30, "batch_size": 8, "lr": 3e-3}
    if arm == "method":
        model = SelfActive(rounds=2, **how)(run, model, rows)
    else:
        model = run.fit(model, model.encode(rows), **how)
    return HeldOutLoss()(run, model, model.encode(Data(two_domains.make(60, seed=9999)))).value


CLAIM = Claim(
    method="self_active",
    world="text",
    rival="as many steps on the given texts alone",
    quantity="held-out loss",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
