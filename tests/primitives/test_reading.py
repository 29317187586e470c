"""Reading files: every kind gives its rows back, nothing is read twice, and a broken file is named with the place."""

from __future__ import annotations

import gzip
import json
import os

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from trainlore.errors import Bad
from trainlore.primitives import reading
from trainlore.primitives.reading import read

ROWS = [{"text": f"row {i} äöü", "label": i, "messages": [{"role": "user", "content": "hi"}]} for i in range(20)]


def put(path, rows, packed=None):
    raw = "".join(json.dumps(r) + "\n" for r in rows).encode()
    path.write_bytes(packed(raw) if packed else raw)
    return path


def test_every_kind_gives_its_rows_back(tmp_path):
    table = pa.table({"text": [r["text"] for r in ROWS], "label": [r["label"] for r in ROWS]})
    flat = [{"text": r["text"], "label": r["label"]} for r in ROWS]
    pq.write_table(table, tmp_path / "a.parquet")
    feather.write_feather(table, str(tmp_path / "a.feather"), compression="lz4")
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as out:
        out.write_table(table)
    with pa.ipc.new_stream(str(tmp_path / "s.arrow"), table.schema) as out:
        out.write_table(table)
    lines = [f"{r['text']},{r['label']}" for r in flat]
    (tmp_path / "a.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "a.tsv").write_text("\n".join(["text\tlabel", *(s.replace(",", "\t") for s in lines)]))
    put(tmp_path / "a.jsonl", flat)
    put(tmp_path / "a.jsonl.gz", flat, gzip.compress)
    with pa.output_stream(str(tmp_path / "a.json.zst"), compression="zstd") as out:
        out.write((tmp_path / "a.jsonl").read_bytes())
    for name in os.listdir(tmp_path):
        got = read(tmp_path / name, tmp_path / "cache")
        assert got.to_pylist() == flat, name
        assert got.schema.types == [pa.large_string(), pa.int64()], name


def test_nested_rows_blank_lines_bom_and_nan(tmp_path):
    path = put(tmp_path / "a.jsonl", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\n") + b'{"label": 3, "score": NaN}')
    got = read(path, tmp_path).to_pylist()
    assert [{k: v for k, v in r.items() if k != "score"} for r in got[:-1]] == ROWS
    assert got[-1]["label"] == 3 and got[-1]["score"] != got[-1]["score"] and got[-1]["text"] is None


def test_the_second_read_maps_the_first(tmp_path, monkeypatch):
    path = put(tmp_path / "a.jsonl", ROWS)
    first = read(path, tmp_path / "c")
    monkeypatch.setattr(reading, "_rows", lambda *a: pytest.fail("read again"))
    before = pa.total_allocated_bytes()
    assert read(path, tmp_path / "c").equals(first)
    assert pa.total_allocated_bytes() - before < 1024  # mapped, not held
    monkeypatch.undo()
    put(path, ROWS[:5])
    assert read(path, tmp_path / "c").num_rows == 5  # the file changed, so it is read again
    damaged = max((tmp_path / "c").glob("*.arrow"), key=os.path.getmtime)
    damaged.write_bytes(damaged.read_bytes()[:100])
    assert read(path, tmp_path / "c").num_rows == 5
    assert not list((tmp_path / "c").glob(".writing*"))


def test_columns_widen_over_batches_and_rows_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROWS", 4)
    rows = [{"x": i, "m": [{"role": "u"}]} for i in range(6)] + [{"x": 0.5, "m": [{"role": "u", "n": 1}], "new": "z"}]
    table = read(put(tmp_path / "a.jsonl", rows + rows[:1]), tmp_path)
    assert table["x"].to_pylist() == [0, 1, 2, 3, 4, 5, 0.5, 0]
    assert table["new"].to_pylist() == [None] * 6 + ["z", None]
    assert table["m"].to_pylist()[5:7] == [[{"role": "u", "n": None}], [{"role": "u", "n": 1}]]
    assert max(c.num_rows for c in table.to_batches()) <= 4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"text": "broken', 'a.jsonl:7: not JSON .*: {"text": "broken$'),
        ("x" * 100, "a.jsonl:7: not JSON .*: " + "x" * 60 + "$"),
        ("[1, 2]", "a.jsonl:7: a line must be an object"),
        ('{"label": "seven"}', "a.jsonl:7: column 'label' holds text here and a number before"),
        ('{"label": 99999999999999999999}', "a.jsonl:7: column 'label'"),
        ('{"messages": [{"role": 3}]}', "a.jsonl:7: column 'messages'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    path = put(tmp_path / "a.jsonl", ROWS)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:6], line, *lines[6:]]))
    with pytest.raises(Bad, match=says):
        read(path, tmp_path / "c")
    assert list((tmp_path / "c").iterdir()) == []  # nothing half-written is left


def test_types_that_clash_over_batches_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROWS", 2)
    path = put(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}, {"x": "a"}])
    with pytest.raises(Bad, match=r"a.jsonl, lines 3 to 3: column 'x' holds large_string here and int64 before"):
        read(path, tmp_path / "c")


def test_bytes_that_are_not_text(tmp_path):
    for name, head in [("a.jsonl", b'{"text": "ok"}\n{"text": "'), ("a.csv", b"text\nok\n"), ("a.txt", b"ok ")]:
        tail = b'"}\n' if name == "a.jsonl" else b"\n"
        (tmp_path / name).write_bytes(head + "é".encode() + b"\xff" + tail)
        at = 12 if name == "a.jsonl" else len(head) + 2
        with pytest.raises(Bad, match=rf"{name}.*byte {at} .*not UTF-8"):
            read(tmp_path / name, tmp_path / "c")
        assert "é\ufffd" in read(tmp_path / name, tmp_path / "c", errors="replace")["text"].to_pylist()[-1]


def test_csv_types_are_those_of_the_whole_column(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "BYTES", 50)  # Arrow guesses from the first block: here a few rows
    rows = [(i, i, "", f'"a, ""b""\n{i}"') for i in range(50)] + [("A7", 0.5, 3, "c")]
    (tmp_path / "a.csv").write_text("id,x,late,text\n" + "".join(",".join(map(str, r)) + "\n" for r in rows))
    table = read(tmp_path / "a.csv", tmp_path / "c")
    assert table["id"].to_pylist() == [*map(str, range(50)), "A7"]
    assert table["x"].to_pylist() == [*range(50), 0.5]
    assert table["late"].to_pylist() == [None] * 50 + [3]
    assert table["text"].to_pylist()[49] == 'a, "b"\n49'


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", "a,b\n1,2\n3\n", "a.csv.*Row #3: Expected 2 columns, got 1"),
        ("a.csv", "a,a\n1,2\n", "'a' stands twice"),
        ("a.csv", "a,b\n", "holds no rows"),
        ("a.csv", "", "a.csv is empty"),
        ("a.jsonl", "\n\n", "holds no rows"),
        ("a.json", '[{"a": 1}]', "one JSON array.*jq"),
        ("a.pdf", "x", r".pdf is not read here; read are .jsonl"),
        ("a.txt.gz", "x", r".gz is not read here"),
        ("a.parquet", "nope", "a.parquet cannot be read"),
        ("a.arrow", "nope", "a.arrow is no Arrow file"),
        ("a.jsonl.gz", "nope", "a.jsonl.gz cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(Bad, match=says):
        read(tmp_path / name, tmp_path / "c")


def test_a_missing_file_names_what_lies_beside_it(tmp_path):
    put(tmp_path / "train.jsonl", ROWS)
    with pytest.raises(Bad, match=r"no file .*trian.jsonl; beside it: train.jsonl"):
        read(tmp_path / "trian.jsonl", tmp_path)
    with pytest.raises(Bad, match='give "strict" or "replace"'):
        read(tmp_path / "train.jsonl", tmp_path, errors="ignore")


def test_a_folder_of_texts_or_of_shards(tmp_path):
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / ".git").mkdir()
    for name in ("b.txt", "a.md", "sub/c.txt", ".git/d.txt", "x.png"):
        (docs / name).write_text(name)
    table = read(docs, tmp_path / "c")
    assert table["path"].to_pylist() == table["text"].to_pylist() == ["a.md", "b.txt", "sub/c.txt"]
    shards = tmp_path / "shards"
    shards.mkdir()
    put(shards / "0.jsonl", ROWS[:3])
    put(shards / "1.jsonl.gz", ROWS[3:], gzip.compress)
    (shards / "README.md").write_text("about")
    assert read(shards, tmp_path / "c").to_pylist() == ROWS
    (shards / "2.csv").write_text("a\n1\n")
    with pytest.raises(Bad, match=r"several kinds \(csv, jsonl\)"):
        read(shards, tmp_path / "c")
    (tmp_path / "none").mkdir()
    with pytest.raises(Bad, match="holds nothing that is read here"):
        read(tmp_path / "none", tmp_path / "c")


def test_saved_datasets_and_hub_ids(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one", tmp_path).to_pylist() == ROWS
    datasets.DatasetDict(train=saved, test=saved).save_to_disk(tmp_path / "two")
    with pytest.raises(Bad, match=r"holds splits; read one of them: .*two.train"):
        read(tmp_path / "two", tmp_path)
    asked = []

    def load(*args, split=None):
        asked.append((*args, split))
        return saved if split else datasets.DatasetDict(test=saved)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read("hub:owner/na.me/config:test[:10]", tmp_path).num_rows == 20
    assert asked == [("owner/na.me", "config", "test[:10]")]
    with pytest.raises(Bad, match="has the splits test; name one: hub:owner/name:test"):
        read("hub:owner/name", tmp_path)
    with pytest.raises(Bad, match="no dataset id"):
        read("hub:a b", tmp_path)
