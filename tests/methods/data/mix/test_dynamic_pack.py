from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.dynamic_pack import DynamicPack, join_sorted
from trainlore.nouns import Data
from trainlore.runs import Run
from trainlore.worlds import two_domains
from trainlore.worlds.tiny import HOW, llama


def textbook(sizes, length):
    """Short to long, a new row where the next would not fit; as lists of documents."""
    rows = [[]]
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        if rows[-1] and sum(sizes[j] for j in rows[-1]) + sizes[i] > length:
            rows.append([])
        rows[-1].append(i)
    return rows


def test_rows_are_the_textbooks():
    rng = np.random.default_rng(0)
    for length in (1, 8, 20, 100) * 5:
        sizes = rng.integers(1, 21, rng.integers(1, 30))
        row, at = join_sorted(sizes, length)
        made = [sorted(np.flatnonzero(row == r), key=lambda i: at[i]) for r in range(row.max() + 1)]
        assert made == textbook(sizes.tolist(), length)
        for mine in made:
            assert at[mine].tolist() == [0, *np.cumsum(sizes[mine])[:-1]]


@cache
def texts(n=40, seed=0):
    return llama().encode(Data(two_domains.make(n, seed=seed)))


def packed(rows, model, **fields):
    batch = texts().batch(rows, model)
    return batch, DynamicPack(**fields).batch(SimpleNamespace(model=model), {}, batch)


def test_each_document_is_laid_out_once_and_alone():
    before, after = packed(np.arange(12), llama(), length=128)
    ids, labels, segment, position = (after[k] for k in ("input_ids", "labels", "segment_ids", "position_ids"))
    assert len(ids) < 12 and "attention_mask" not in after and len(set(after["row"].tolist())) == len(ids)
    want = [r[m.bool()].tolist() for r, m in zip(before["input_ids"], before["attention_mask"], strict=True)]
    found = [ids[r][segment[r] == k].tolist() for r in range(len(ids)) for k in range(int(segment[r].max()) + 1)]
    assert sorted(found) == sorted(want) and (ids[segment < 0] == llama().tokenizer.pad_token_id).all()
    assert ((labels == -100) == ((position == 0) | (segment < 0))).all()
    assert (labels[labels >= 0] == ids[labels >= 0]).all()
    assert int(position.max()) == max(map(len, want)) - 1


def test_the_training_is_the_same_and_crossing_is_not():
    made = []
    for parts in ((), (DynamicPack(),), (DynamicPack(cross=True),)):
        model = Run(0).fit(llama(0), texts(), *parts, steps=3, **{**HOW["text"], "lr": 1e-3})
        made.append(torch.cat([p.flatten() for p in model.net.parameters()]))
    assert (made[0] - made[1]).abs().max() < 1e-5 < (made[0] - made[2]).abs().max()


def test_nothing_fits_and_what_it_refuses():
    before, after = packed(np.arange(5), llama(), length=1)
    assert after is before
    model, rows = llama(), texts()
    for part, data, said in (
        (DynamicPack(length=0), rows, "length=0"),
        (DynamicPack(), rows.with_(weight=np.ones(len(rows))), "'weight'"),
        (
            DynamicPack(),
            rows.with_(segment_ids=[[0] * n for n in np.diff(rows.lists("input_ids")[1])]),
            "no packed ones",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            Run(0).fit(model.copy(), data, part, steps=1, **HOW["text"])


def measure(seed: int, arm: str) -> float:
    """The share of padding in the batches of 16 rows of an epoch."""
    model, rows = llama(), Run(seed).numpy("order").permutation(320)
    part = DynamicPack(length=512 if arm == "method" else 1)
    real = total = 0
    for at in range(0, 320, 16):
        batch = texts(320).batch(rows[at : at + 16], model)
        real += int(batch["attention_mask"].sum())
        total += part.batch(SimpleNamespace(model=model), {}, batch)["input_ids"].numel()
    return 1 - real / total


CLAIM = Claim(
    method="dynamic_pack",
    world="text",
    rival="padding each batch to its longest row",
    quantity="share of padding in the batches",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
