"""Data: made from anything and back, narrowed, widened and read in any order, hashed by content, collated."""

import json
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainlore.errors import Bad
from trainlore.nouns import Data

ROWS = [
    {"text": "a b", "label": 0, "score": 0.5},
    {"text": "ü 漢\n", "label": 1, "score": 1.5},
    {"text": "", "label": 2, "score": -2.0},
]


def same(data):
    assert list(data.text()) == [r["text"] for r in ROWS]
    assert data["label"].tolist() == [0, 1, 2] and data["score"].tolist() == [0.5, 1.5, -2.0]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "arrow"])
def test_files_hold_the_rows_that_were_written(home, form):
    path = home / f"rows.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n\n" for r in ROWS))
    elif form == "csv":
        from trainlore.single import table

        table(Data.of(ROWS), path)
    elif form == "parquet":
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(ROWS), path)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, pa.Table.from_pylist(ROWS).schema) as out:
            out.write_table(pa.Table.from_pylist(ROWS))
    same(Data.of(path))
    same(Data.of(str(path)))


def test_a_folder_of_texts_is_a_row_a_file(home):
    folder = home / "texts"
    (folder / "b").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "b" / "c.txt").write_text("two\nlines")
    data = Data.of(folder)
    assert list(data.text()) == ["one", "two\nlines"] and data["path"].to_pylist() == ["a.txt", "b/c.txt"]


def test_things_in_memory_hold_the_same_rows():
    import datasets
    import pandas as pd

    frame = pd.DataFrame(ROWS, index=[7, 8, 9])
    hub = datasets.Dataset.from_list(ROWS)
    for source in (
        ROWS,
        frame,
        hub,
        {k: [r[k] for r in ROWS] for k in ROWS[0]},
        pa.Table.from_pylist(ROWS),
        pa.RecordBatch.from_pylist(ROWS),
    ):
        same(Data.of(source))
    assert (
        list(Data.of(["x", "y"]).text())
        == list(Data.of(pd.Series(["x", "y"])).text())
        == list(Data.of(np.array(["x", "y"])).text())
        == ["x", "y"]
    )
    assert list(Data.of(hub.select([2, 0])).text()) == ["", "a b"]  # rows that were chosen but not moved
    back = Data.of(frame).take([2, 0]).hf()
    assert back["label"][:] == [2, 0] and Data.of(back)["score"].tolist() == [-2.0, 0.5]
    packed = Data.of(pd.DataFrame({"text": pd.Categorical(["u", "v", "u"])}))
    assert list(packed.text()) == ["u", "v", "u"]
    assert Data.of(Data.of(ROWS)).columns == ["text", "label", "score"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ([], "from an empty list"),
        (None, "from NoneType"),
        (["a", 1], "from list; give a path"),
        ({"a": 1}, "column 'a': a column is a list, not int"),
        ({"text": "abc"}, "column 'text': a column is a list, not str"),
        ({"a": [1, 2], "b": [1]}, "differ in length: {'a': 2, 'b': 1}"),
        ({"a": [1, "x"]}, "column 'a': Could not convert 'x'"),
        ([{"n": 1}, {"n": "x"}], "column 'n': Could not convert"),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "column 'a' is there twice"),
    ],
)
def test_what_is_no_data_is_refused(source, says):
    with pytest.raises(Bad, match=says):
        Data.of(source)


def test_datasets_that_are_not_one_table_are_refused():
    import datasets
    import pandas as pd

    hub = datasets.Dataset.from_list(ROWS)
    with pytest.raises(Bad, match="one of its splits: train"):
        Data.of(datasets.DatasetDict({"train": hub}))
    with pytest.raises(Bad, match="take some rows first"):
        Data.of(hub.to_iterable_dataset())
    with pytest.raises(Bad, match="column a"):
        Data.of(pd.DataFrame({"a": [1, "x"]}))


# ---- narrowing and widening


@settings(max_examples=60, deadline=None, database=None)
@given(st.data())
def test_taking_and_adding_are_what_lists_do(data):
    n = data.draw(st.integers(1, 12))
    ragged = data.draw(st.lists(st.lists(st.integers(-9, 9), max_size=4), min_size=n, max_size=n))
    noun = Data.of({"n": np.arange(n), "r": pa.array(ragged, pa.list_(pa.int64())), "s": [f"t{i}" for i in range(n)]})
    want = [{"n": i, "r": ragged[i], "s": f"t{i}", "id": i} for i in range(n)]
    for step in range(data.draw(st.integers(1, 5))):
        what = data.draw(st.sampled_from(["take", "where", "with", "chunk"]))
        if what == "take":
            at = data.draw(st.lists(st.integers(-len(want), len(want) - 1), max_size=8)) if want else []
            noun, want = noun.take(at), [want[i] for i in at]
        elif what == "where":
            mask = data.draw(st.lists(st.booleans(), min_size=len(want), max_size=len(want)))
            noun, want = noun.where(np.array(mask, bool)), [w for w, m in zip(want, mask, strict=True) if m]
        elif what == "chunk" and noun.rows is None:
            table, cut = noun.table, data.draw(st.integers(0, noun.table.num_rows))
            again = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
            assert Data(again, None, noun.base_ids).fingerprint == noun.fingerprint  # however a column is chunked
            noun = Data(again, None, noun.base_ids)
        else:
            kind, name = data.draw(st.sampled_from(["i", "f", "s", "r", "m", "b"])), f"c{step}"
            new = [data.draw(VALUES[kind]) for _ in want]
            noun = noun.with_(
                **{
                    name: np.array(new).reshape(-1, 2)
                    if kind == "m"
                    else pa.array(new, TYPES[kind])
                    if kind in TYPES
                    else new
                }
            )
            want = [{**w, name: v} for w, v in zip(want, new, strict=True)]
    assert len(noun) == len(want) and noun.ids.tolist() == [w["id"] for w in want]
    assert noun["n"].tolist() == [w["n"] for w in want] and list(noun.text("s")) == [w["s"] for w in want]
    values, offsets = noun.lists("r")
    assert [values[a:b].tolist() for a, b in pairwise(offsets)] == [w["r"] for w in want]
    for name in noun.columns[3:]:
        held = noun[name]
        assert (held.tolist() if isinstance(held, np.ndarray) else held.to_pylist()) == [w[name] for w in want]
    whole = {r["n"]: r["s"] for r in noun.whole().arrow().to_pylist()}
    assert set(noun.dropped()["n"].tolist()) | set(noun["n"].tolist()) == set(whole)


VALUES = {
    "i": st.integers(-99, 99),
    "f": st.floats(-4, 4),
    "s": st.text(max_size=3),
    "r": st.lists(st.integers(0, 9), max_size=3),
    "m": st.lists(st.integers(0, 9), min_size=2, max_size=2),
    "b": st.booleans(),
}
TYPES = {"i": pa.int64(), "f": pa.float64(), "s": pa.large_string(), "r": pa.list_(pa.int64()), "b": pa.bool_()}


def test_a_view_changes_nothing_it_was_made_of():
    data = Data.of(ROWS)
    before = data.fingerprint
    part = data.take([2, 1]).with_(label=[5, 6], more=["x", "y"])
    assert (
        data.fingerprint == before
        and data.columns == ["text", "label", "score"]
        and data["label"].tolist() == [0, 1, 2]
    )
    assert part["label"].tolist() == [5, 6] and part["more"].to_pylist() == ["x", "y"] and part.ids.tolist() == [2, 1]
    assert part.dropped()["more"].to_pylist() == [None] and part.dropped().ids.tolist() == [0]
    assert part.without("more", "score").columns == ["text", "label"]
    twice = data.take([0, 0, 1]).with_(n=[1, 2, 3])  # a row taken twice is two rows from then on
    assert twice["n"].tolist() == [1, 2, 3] and twice.ids.tolist() == [0, 0, 1]


def test_positions_that_are_none_are_refused():
    data = Data.of(ROWS)
    for bad, error in (([3], IndexError), ([-4], IndexError), ([0.5], ValueError), ([[0, 1]], ValueError)):
        with pytest.raises(error):
            data.take(bad)
    with pytest.raises(ValueError, match=r"mask of \(2,\) over 3 rows"):
        data.where([True, False])
    with pytest.raises(ValueError, match="'n' has 2 values for 3 rows"):
        data.with_(n=[1, 2])
    assert data.take([]).ids.tolist() == [] and data.take([])["label"].tolist() == []


def test_new_rows_and_joined_rows():
    data = Data.of(ROWS).take([2, 0])
    made = data.new({"text": ["p", "q", "r"]}, parents=data.ids[[0, 0, 1]])
    assert made["parents"].tolist() == [2, 2, 0] and made.ids.tolist() == [0, 1, 2]
    both = data.join(Data.of({"text": ["z"], "score": [1], "other": [0]}))
    assert (
        both.columns == ["text", "score"]
        and list(both.text()) == ["", "a b", "z"]
        and both["score"].tolist() == [-2, 0.5, 1]
    )
    with pytest.raises(Bad, match="no column is in both: text, label, score and q"):
        data.join(Data.of({"q": [1]}))
    with pytest.raises(Bad, match="do not go together.*label"):
        data.join(Data.of({"label": ["x"]}))


def test_a_fingerprint_speaks_of_content():
    a, b = Data.of(ROWS), Data.of([dict(r) for r in ROWS])
    assert a.fingerprint == b.fingerprint
    others = [
        a.take([0, 1]),
        a.take([1, 0, 2]),
        a.with_(label=[0, 1, 3]),
        a.without("score"),
        a.with_(label=[0.0, 1.0, 2.0]),
    ]
    assert len({d.fingerprint for d in (a, *others)}) == 6
    assert a.take([0, 1]).fingerprint == b.where([True, True, False]).fingerprint
    bits = np.arange(13) % 3 == 0
    whole, cut = pa.array(np.concatenate([bits, bits])), pa.array(bits)
    assert Data(pa.table({"b": whole.slice(13)})).hashes() == Data(pa.table({"b": cut})).hashes()


# ---- collating


def test_batches_hold_every_numeric_column():
    table = {
        "text": ["x", "y", "z"],
        "label": [1, 0, 2],
        "weight": np.array([1, 2, 3], np.float64),
        "input_ids": pa.array([[1, 2, 3], [4], []], pa.list_(pa.int32())),
        "gold": pa.array([[1.5], [], [2.5, 3.5]]),
        "features": np.arange(6, dtype=np.float32).reshape(3, 2),
        "parents": pa.array([[0], [1], [2]]),
        "messages": [[{"role": "user", "content": "q"}]] * 3,
        "tags": [["a"], [], ["b"]],
    }
    batch = Data.of(table).take([2, 0]).batch([1, 0])
    assert sorted(batch) == ["attention_mask", "features", "gold", "input_ids", "labels", "row", "weight"]
    assert (
        batch["row"].tolist() == [1, 0]
        and batch["labels"].tolist() == [1, 2]
        and batch["weight"].dtype == torch.float32
    )
    assert batch["input_ids"].tolist() == [[1, 2, 3, 0, 0, 0, 0, 0], [0] * 8] and batch["attention_mask"].sum(
        1
    ).tolist() == [3, 0]
    assert batch["gold"][:, :2].tolist() == [[1.5, 0], [2.5, 3.5]] and batch["features"].tolist() == [[0, 1], [4, 5]]
    assert Data.of(table).kinds == {
        "text": "text", "label": "labels", "weight": "numbers", "input_ids": "tokens", "gold": "numbers", "features": "numbers",
        "parents": "tokens", "messages": "text", "tags": "text", "labels": "labels", "row": "labels",
    }  # fmt: skip
    assert len(Data.of(table).batch([])["row"]) == 0


def test_what_a_network_reads_as_it_is_is_never_padded(home):
    images = np.random.default_rng(0).random((3, 1, 2, 5)).astype(np.float32)
    data = Data.of({"pixel_values": images, "label": [0, 1, 2]})
    assert np.array_equal(data.take([2, 0])["pixel_values"], images[[2, 0]])
    assert tuple(data.batch([0, 1])["pixel_values"].shape) == (2, 1, 2, 5)
    (home / "x.jsonl").write_text("".join(json.dumps({"features": [i, 2, 3], "label": i}) + "\n" for i in range(3)))
    read = Data.of(home / "x.jsonl")
    assert read["features"].shape == (3, 3) and read.batch([1])["features"].tolist() == [[1.0, 2.0, 3.0]]


def test_a_missing_number_is_an_error_only_where_it_is_in_play():
    data = Data.of({"n": pa.array([1, None, 3]), "b": pa.array([True, None, False]), "x": pa.array([1.0, None, 3.0])})
    assert np.isnan(data["x"][1])
    for name in "nb":
        with pytest.raises(Bad, match=rf"column '{name}' has no value in a row \(1\): fill it, drop"):
            data[name]
    assert set(data.batch([0, 1])) == {"row", "x"}
    rest = data.take([2, 0])
    assert rest["n"].tolist() == [3, 1] and rest["b"].tolist() == [False, True] and rest.batch([0])["n"].tolist() == [3]
    with pytest.raises(Bad, match="no value"):  # the whole table is as it was
        data["n"]
    fixed = Data.of({"f": pa.array([[1.0, 2.0], None], pa.list_(pa.float32(), 2))})
    with pytest.raises(Bad, match="column 'f' has no value"):
        fixed["f"]
    assert fixed.take([0])["f"].tolist() == [[1, 2]]
    with pytest.raises(Bad, match="lists with a value missing, the first in row 1"):
        Data.of({"input_ids": pa.array([[1], [2, None]])}).batch([0])


def test_null_text_is_empty_and_null_lists_are_empty():
    data = Data.of({"text": pa.array(["a", None]), "input_ids": pa.array([None, [5]])})
    assert list(data.text()) == ["a", ""]
    values, offsets = data.lists("input_ids")
    assert values.tolist() == [5] and offsets.tolist() == [0, 0, 1]


def test_numbers_of_the_users_own_with_gaps_stay_out_of_batches():
    """A table of stars that some rows lack trains and is scored as one without it; a part that wants the stars is told."""
    from trainlore.nouns.data import GAPS

    rows = Data.of(
        {"text": ["a", "b", "c"], "label": [0, 1, 0], "stars": [5, None, 3], "tags": [[1], [2, None], [3, 4]]}
    )
    assert set(rows.batch([0, 1])) == {"row", "labels"} and rows.kinds["stars"] == rows.kinds["tags"] == GAPS
    whole = rows.take([0, 2])
    assert whole.batch([0, 1])["stars"].tolist() == [5, 3] and whole.kinds["stars"] == "labels"
    assert rows.take([1]).kinds["stars"] == GAPS and rows.kinds["stars"] == GAPS  # each view by itself
    with pytest.raises(Bad, match="'label' has no value in a row"):
        Data.of({"features": [[1.0], [2.0]], "label": [1, None]}).batch([0, 1])
