"""Best-fit packing: nothing is cut that fits, and nothing is lost."""

import numpy as np
import pytest
import torch

from trainlore.claims import Claim
from trainlore.methods.data.mix.best_fit_packing import BestFitPacking
from trainlore.methods.data.mix.concat_packing import ConcatPacking
from trainlore.nouns import Data
from trainlore.primitives.packing import best_fit, pack_best_fit, pack_concat
from trainlore.worlds.tiny import world


def room_left(sizes, length):
    """The textbook's loop: longest first, into the tightest row that holds it."""
    room = []
    for size in sorted(sizes, reverse=True):
        fitting = [(r, i) for i, r in enumerate(room) if r >= size]
        if fitting:
            room[min(fitting)[1]] -= size
        else:
            room.append(length - size)
    return sorted(room)


def test_it_is_best_fit_decreasing():
    rng = np.random.default_rng(0)
    for length in (1, 2, 7, 16, 33) * 8:
        sizes = rng.integers(1, length + 1, rng.integers(0, 90))
        row, at, rows = best_fit(sizes, length)
        used = np.zeros((rows, length), int)
        for r, a, size in zip(row, at, sizes, strict=True):
            used[r, a : a + size] += 1
        assert used.max(initial=0) <= 1
        assert sorted(length - used.sum(1)) == room_left(sizes, length)


def test_the_paper_s_example():
    """Documents of 14, 7, 5, 2 and 3 tokens, rows of 8: one is cut, as it must be; joining cuts three."""
    sizes = np.array([14, 7, 5, 2, 3])
    best, joined = pack_best_fit(sizes, 8), pack_concat(sizes, 8)
    assert (best.cut.tolist(), len(joined.cut)) == ([0], 3)
    assert best.rows == joined.rows == 4
    assert np.bincount(joined.doc, joined.size).tolist() == sizes.tolist()


def docs(sizes):
    ids = [list(range(100 * i + 1, 100 * i + 1 + n)) for i, n in enumerate(sizes)]
    return Data.of({"input_ids": ids, "domain": ["xy"[i % 2] for i in range(len(ids))]})


def test_rows_say_where_each_document_is():
    made = BestFitPacking(length=8)(docs([14, 7, 5, 0, 3, 2]))
    ids, labels, segment, position = (made[c] for c in ("input_ids", "labels", "segment_ids", "position_ids"))
    assert ids.shape == labels.shape == (len(made), 8)
    assert ((segment < 0) == (ids == 0)).all() and ((labels == -100) == ((position == 0) | (segment < 0))).all()
    assert (labels[labels != -100] == ids[labels != -100]).all()
    for row in range(len(made)):
        for k in range(segment[row].max() + 1):
            mine = ids[row][segment[row] == k]
            assert (np.diff(mine) == 1).all() and position[row][segment[row] == k].tolist() == list(range(len(mine)))
        assert {(t - 1) // 100 for t in ids[row][ids[row] > 0]} == set(made["parents"].to_pylist()[row])
    assert sorted(ids[ids > 0]) == sorted(t for row in docs([14, 7, 5, 0, 3, 2])["input_ids"].to_pylist() for t in row)


def test_labels_are_carried_and_domains_kept_apart():
    data = docs([5, 5, 3, 3])
    masked = data.with_(labels=[[-100, -100, *row[2:]] for row in data["input_ids"].to_pylist()])
    assert (BestFitPacking(length=8)(masked)["labels"] != -100).sum() == sum(n - 2 for n in (5, 5, 3, 3))
    apart = BestFitPacking(length=8, within="domain")(data)
    assert apart["domain"].to_pylist() == ["x", "y"] and apart["parents"].to_pylist() == [[0, 2], [1, 3]]
    crossed = ConcatPacking(length=8, cross=True)(data)
    assert (crossed["labels"] == crossed["input_ids"]).all() and (crossed["position_ids"] == np.arange(8)).all()


@torch.no_grad()
def test_packed_documents_do_not_see_each_other():
    """The logits of a document in a row are those it has alone."""
    nouns = world("text")
    model, data = nouns["model"], nouns["data"].take(range(8))
    made = BestFitPacking(length=128, model=model)(data)
    packed = made.batch(np.arange(len(made)), model)
    out, alone = model(packed), {}
    for i in range(8):
        batch = data.batch([i], model)
        alone[tuple(batch["input_ids"][0][batch["attention_mask"][0] == 1].tolist())] = model(batch)[0]
    for row in range(len(made)):
        for k in range(int(packed["segment_ids"][row].max()) + 1):
            mine = packed["segment_ids"][row] == k
            want = alone.pop(tuple(packed["input_ids"][row][mine].tolist()))
            assert torch.allclose(out[row][mine], want[: mine.sum()], atol=1e-5)
    assert not alone


@pytest.mark.parametrize(
    ("data", "fields"),
    [(docs([3]), {"length": 1}), (Data.of(["text"]), {"length": 8}), (docs([]), {}), (docs([0]), {})],
)
def test_what_it_refuses(data, fields):
    with pytest.raises(ValueError):
        BestFitPacking(**fields)(data)


def measure(seed: int, arm: str) -> float:
    """The share of documents that would fit in a row and lie in two."""
    data = world("text")["data"]
    data = data.take(np.random.default_rng(seed).permutation(len(data)))
    length = 64
    made = (BestFitPacking if arm == "method" else ConcatPacking)(length=length)(data)
    id, rows = np.unique(np.concatenate(made["parents"].to_pylist()), return_counts=True)
    fits = np.isin(id, data.ids[np.diff(data.lists("input_ids")[1]) <= length])
    return float((rows[fits] > 1).mean())


CLAIM = Claim(
    method="best_fit_packing",
    world="text",
    rival="concat_packing",
    quantity="share of documents cut though they fit a row",
    better="lower",
    measure=measure,
    seeds=10,
    quick=3,
)
