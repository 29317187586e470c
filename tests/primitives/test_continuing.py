"""Going on with texts: prompts by hand, and the likeliest words of causal and masked networks."""

from __future__ import annotations

import torch

from trainlore.nouns import Model
from trainlore.primitives.continuing import continued, prompts
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import world


def test_a_prompt_loses_its_last_words():
    # the authors': int(0.15 n) + 1
    starts, cut = prompts(["a b c d e f g h i j", "a b", "a", "a  b\nc d e f g"], 0.15)
    assert starts == ["a b c d e f g h", "a", "", "a b c d e"] and cut == [2, 1, 1, 2]


def test_a_causal_network_goes_on_with_its_likeliest_words():
    at = world("text")
    starts = [" ".join(t.split()[:4]) for t in list(at["held_out"].text("text"))[:3]]
    made = continued(Run(0), at["teacher"], starts, [2, 3, 2])
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
    made = continued(Run(0), model, text, [2, 1])
    for start, got, count in zip(text, made, (2, 1), strict=True):
        for _ in range(count):
            ids = torch.tensor([tok(f"{start} <mask>")["input_ids"]])
            logits = model.net(input_ids=ids).logits[0, ids[0].tolist().index(tok.mask_token_id)]
            logits[tok.all_special_ids] = -torch.inf
            start = f"{start} {tok.decode([int(logits.argmax())]).strip()}".strip()
        assert got == start


def test_no_more_is_made_than_half_the_window_holds():
    at = world("text")
    (start,) = [" ".join(t.split()[:4]) for t in list(at["held_out"].text("text"))[:1]]
    (made,) = continued(Run(0), at["teacher"], [start], [100_000])
    assert len(made.split()) <= 4 + at["teacher"].window // 2
