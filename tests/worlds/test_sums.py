"""The verifier's world: right problems, an exact judge, a tokenizer that survives saving."""

from __future__ import annotations

import numpy as np
import pytest

from trainlore.errors import Bad
from trainlore.worlds import sums


def test_problems_are_right_and_come_once():
    rows = sums.make(10_000, seed=0).to_pylist()
    for r in rows:
        a, b = r["prompt"].removesuffix("=").split("+")
        assert int(a) + int(b) == int(r["completion"]) and max(len(a), len(b)) <= 2
    assert len({r["prompt"] for r in rows}) == 10_000  # all of them, once
    assert sums.make(50, seed=3).equals(sums.make(50, seed=3)) and not sums.make(50, seed=3).equals(
        sums.make(50, seed=4)
    )
    twice = sums.make(250, seed=0, digits=1)["prompt"].to_pylist()
    assert sorted(twice[:100]) == sorted(twice[100:200]) and twice[:100] != twice[100:200]


def test_other_operators_and_many_digits():
    rows = sums.make(2000, seed=0, digits=6, operators="+-*").to_pylist()
    assert len({r["prompt"] for r in rows}) == 2000
    assert all(r["completion"] == str(eval(r["prompt"][:-1])) for r in rows)
    assert {c for r in rows for c in r["prompt"] if c in "+-*"} == set("+-*")
    assert any(r["completion"].startswith("-") for r in rows)


def test_split_shares_no_problem():
    made = sums.split(60, 40, digits=1)
    train, test = (set(made[k]["prompt"].to_pylist()) for k in ("train", "test"))
    assert (len(train), len(test), len(train & test)) == (60, 40, 0)
    with pytest.raises(Bad, match="exceed the 100 problems of 1 digits; raise digits"):
        sums.split(60, 41, digits=1)


def test_the_judge_is_exact():
    table = sums.make(100, seed=0)
    prompts, answers = table["prompt"].to_pylist(), table["completion"].to_pylist()
    assert sums.correct(prompts, answers).all() and sums.correct(prompts, answers).dtype == bool
    said = ["19", " 19\n", "019", "19.", "19 = 19", "", "+19", "2+17", "1 9", "-19", "1٩"]
    assert sums.correct(["12+7="] * len(said), said).tolist() == [True, True] + [False] * 9
    assert sums.correct(["3-5=", "12*12=", "3-5="], ["-2", "144", "2"]).tolist() == [True, True, False]
    assert sums.correct([], []).shape == (0,)
    with pytest.raises(Bad, match="row 1: '12\\+x=' is no problem"):
        sums.correct(["1+1=", "12+x="], ["2", "3"])
    with pytest.raises(Bad, match="1 prompts and 2 completions"):
        sums.correct(["1+1="], ["2", "3"])


@pytest.mark.parametrize("how", [{"digits": 0}, {"digits": 9}, {"operators": ""}, {"operators": "+/"}, {"n": -1}])
def test_a_problem_that_does_not_exist_is_refused(how):
    with pytest.raises(Bad, match=next(iter(how))):
        sums.make(**{"n": 3, "seed": 0, **how})


def test_a_token_is_a_character(tmp_path):
    from transformers import AutoTokenizer

    tok = sums.tokenizer()
    text = "12+7=19 -3*4"
    assert tok.tokenize(text) == list(text)
    tok.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for t in (tok, again):
        ids = t(text)["input_ids"]
        assert len(ids) == len(text) and t.decode(ids) == text and len(t) == 19
        assert t.decode([*ids, t.eos_token_id, t.pad_token_id], skip_special_tokens=True) == text
        assert t("a\n")["input_ids"] == [t.unk_token_id] * 2
    assert len({tok.pad_token_id, tok.bos_token_id, tok.eos_token_id, tok.unk_token_id}) == 4
    tok.add_tokens(["new"])
    assert len(sums.tokenizer()) == 19  # nobody else's tokenizer changed
    batch = tok(["1+1=", "12+12="], padding=True, return_tensors="np")
    assert np.asarray(batch["attention_mask"]).sum(1).tolist() == [4, 6]
