"""Rows of a chunked column: those that Arrow's own `take` gives, without a copy of all the others."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from trainlore.nouns import Data
from trainlore.nouns.columns import gathered, gathered_table

WORDS = [f"word {i}" if i % 7 else None for i in range(100)]
COLUMNS = {
    "text": pa.array(WORDS, pa.large_string()),
    "number": pa.array([i if i % 5 else None for i in range(100)]),
    "lists": pa.array([list(range(i % 4)) for i in range(100)], pa.large_list(pa.int32())),
    "vector": pa.FixedSizeListArray.from_arrays(pa.array(np.arange(300.0)), 3),
    "kind": pa.array([str(i % 3) for i in range(100)]).dictionary_encode(),
}
ORDERS = [[], [5], [99, 0], list(range(0, 100, 3)), list(range(99, -1, -1)), [7, 7, 40, 7, 40], [3, 90, 50, 51, 2]]


@pytest.mark.parametrize("rows", ORDERS, ids=str)
def test_the_rows_are_those_of_take(rows):
    rows = np.array(rows, np.int64)
    table = pa.concat_tables([pa.table(COLUMNS).slice(at, n) for at, n in ((0, 1), (1, 40), (41, 0), (41, 59))])
    assert table["text"].num_chunks == 4
    for name in table.column_names:
        assert gathered(table[name], rows).to_pylist() == table[name].take(pa.array(rows, pa.int64())).to_pylist()
    taken = gathered_table(table, rows)
    assert taken.schema == table.schema and taken.to_pylist() == table.take(pa.array(rows, pa.int64())).to_pylist()


def test_a_few_rows_of_a_long_text_column_take_little_memory():
    table = pa.concat_tables([pa.table({"text": pa.array(["x" * 1000] * 1000, pa.large_string())})] * 40)
    few = Data(table).take(np.arange(0, 40_000, 4000))
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    held = few.arrow()
    assert pool.bytes_allocated() - before < 100_000  # all the text is 40 MB
    assert list(few.text()) == held["text"].to_pylist() == ["x" * 1000] * 10
    assert len(few["text"]) == 10 and pool.bytes_allocated() - before < 200_000
