from __future__ import annotations

import torch

from trainlore.nouns import Data
from trainlore.primitives.beside import carried, fetched, readable, unpacked
from trainlore.worlds.tiny import world


def test_text_is_encoded_and_what_can_be_read_is_left():
    at = world("text")
    made = readable(at["model"], Data.of(["one two", "three"]))
    assert "input_ids" in made.columns and len(made) == 2
    assert readable(at["model"], at["data"]) is at["data"]


def test_rows_are_drawn_by_the_generator_alone():
    at = world("digits")
    first, again = (fetched(at["model"], at["spare"], 12, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first["features"], again["features"]) and first["features"].shape == (12, 64)
    rows = torch.randint(len(at["spare"]), (12,), generator=torch.Generator().manual_seed(3))
    assert torch.equal(first["features"], torch.tensor(at["spare"]["features"])[rows])


def test_what_is_carried_is_split_with_the_rows_and_comes_back():
    rows = {"input_ids": torch.arange(24).view(6, 4), "attention_mask": torch.ones(6, 4), "row": torch.arange(6)}
    batch = {"row": torch.arange(3), **carried("more", rows, 3, ("input_ids", "attention_mask", "token_type_ids"))}
    assert batch.keys() == {"row", "more_input_ids", "more_attention_mask"}
    half = unpacked("more", {k: v[1:] for k, v in batch.items()})
    assert half.keys() == {"input_ids", "attention_mask"} and torch.equal(half["input_ids"], rows["input_ids"][2:])
    assert unpacked("other", batch) == {}
