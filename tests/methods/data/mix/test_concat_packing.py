"""Concatenate and cut: the stream, whole."""

import numpy as np
import pytest

from trainlore.claims import Claim
from trainlore.methods.data.mix.concat_packing import ConcatPacking
from trainlore.nouns import Data
from trainlore.primitives.packing import pack_concat
from trainlore.worlds.tiny import world


def test_it_cuts_the_stream_every_length_tokens():
    rng = np.random.default_rng(0)
    for _ in range(40):
        sizes, length = rng.integers(0, 20, rng.integers(1, 30)), int(rng.integers(1, 12))
        stream = [(d, i) for d, n in enumerate(sizes) for i in range(n)]
        packing = pack_concat(sizes, length)
        laid = {}
        for d, start, size, row, at in zip(
            packing.doc, packing.start, packing.size, packing.row, packing.at, strict=True
        ):
            laid |= {row * length + at + i: (d, start + i) for i in range(size)}
        assert [laid[i] for i in range(len(stream))] == stream and len(laid) == len(stream)
        assert packing.rows == -(-len(stream) // length)


def test_only_the_last_row_is_padded():
    made = ConcatPacking(length=4)(Data.of({"input_ids": [[1, 2, 3], [4, 5, 6], [7]]}))
    assert made["input_ids"].tolist() == [[1, 2, 3, 4], [5, 6, 7, 0]]
    assert made["labels"].tolist() == [[-100, 2, 3, -100], [-100, 6, -100, -100]]
    assert made["segment_ids"].tolist() == [[0, 0, 0, 1], [0, 0, 1, -1]]
    assert made["position_ids"].tolist() == [[0, 1, 2, 0], [0, 1, 0, 0]]
    assert made["parents"].to_pylist() == [[0, 1], [1, 2]]


def test_across_documents_a_row_is_one_segment():
    made = ConcatPacking(length=4, cross=True)(Data.of({"input_ids": [[1, 2, 3], [4, 5, 6], [7]]}))
    assert made["labels"].tolist() == [[1, 2, 3, 4], [5, 6, 7, -100]]
    assert made["segment_ids"].tolist() == [[0, 0, 0, 0], [0, 0, 0, -1]]


def test_it_refuses_packed_rows():
    once = ConcatPacking(length=4)(Data.of({"input_ids": [[1, 2, 3]]}))
    with pytest.raises(ValueError, match="packed already"):
        ConcatPacking(length=4)(once)


def measure(seed: int, arm: str) -> float:
    """The share of padding in rows of 64 tokens, of documents joined and cut or each in rows of its own."""
    data = world("text")["data"]
    data = data.take(np.random.default_rng(seed).permutation(len(data)))
    sizes = np.diff(data.lists("input_ids")[1])
    if arm == "method":
        return float((ConcatPacking(length=64)(data)["segment_ids"] < 0).mean())
    return float(1 - sizes.sum() / (-(-sizes // 64) * 64).sum())


CLAIM = Claim(
    method="concat_packing",
    world="text",
    rival="each document in rows of its own",
    quantity="share of padding",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
