"""Turn files into Arrow tables that lie on disk: read in bounded batches, kept as one memory-mapped file.

A file is read once. Its table is written under the cache folder as an uncompressed Arrow file, whole or not at all,
named by the path, size and time of what was read; the next call maps that file and reads nothing.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainlore.errors import Bad

ROWS = 8192  # rows of a batch
BYTES = 8 << 20  # and raw bytes of a batch, whichever comes first
VERSION = 1  # raise when the same file would give another table
SUFFIXES = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet",
    ".txt": "text", ".md": "text", ".arrow": "arrow", ".ipc": "arrow", ".feather": "feather",
}  # fmt: skip
PACKED = ".gz", ".zst", ".bz2", ".lz4"
KNOWN = (
    "read are .jsonl .ndjson .json (one object a line) .csv .tsv, these also with .gz .zst .bz2 .lz4 behind; "
    ".parquet .arrow .ipc .feather .txt .md, folders of one kind, and hub:owner/name[/config][:split]"
)
HUB = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:/([\w.-]+))?(?::([\w.\-\[\]%:+]+))?")  # owner/name[/config][:split]

Found = Iterator[tuple[str, pa.RecordBatch]]  # where it stands in the file, for messages, and the rows


def read(path: str | Path, cache_dir: str | Path, *, errors: str = "strict") -> pa.Table:
    """Read a file, a folder or `hub:owner/name[/config][:split]` as a memory-mapped table.

    `errors`: "strict" refuses bytes that are not UTF-8 and says where they are; "replace" puts U+FFFD in their place.
    """
    if errors not in ("strict", "replace"):
        raise Bad(f'errors={errors!r}: give "strict" or "replace"')
    if str(path).startswith("hub:"):
        return _hub(str(path).removeprefix("hub:"))
    path = Path(path).expanduser()
    files = _files(path)
    if all(_kind(f) == "arrow" for f in files):
        return _large(_some(pa.concat_tables([_mapped(f) for f in files], promote_options="permissive"), path))
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    key = hashlib.blake2b(repr((VERSION, errors, str(path.resolve()), stats)).encode(), digest_size=16).hexdigest()
    kept = Path(cache_dir) / f"{key}.arrow"
    if kept.exists():
        with suppress(pa.ArrowInvalid, OSError):  # a damaged file is read again and replaced
            return pa.ipc.open_file(pa.memory_map(str(kept))).read_all()
    return write(_rows(path, files, errors), kept, str(path))


def write(batches: Found, to: Path, name: str) -> pa.Table:
    """Write batches as one Arrow file, whole or not at all, and map it.

    Columns that come later or turn out wider (whole numbers, then fractions; a struct with one more field) widen the
    table: the rows so far are set aside, and all are written once more at the end. Types that have no common form are
    an error that says where they meet.
    """
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".writing-") as folder:
        parts, schema = _segments(batches, Path(folder))
        if schema is None:
            raise Bad(f"{name} holds no rows")
        if len(parts) > 1:
            whole = Path(folder) / "whole.arrow"
            with pa.ipc.new_file(str(whole), schema) as out:
                for part in parts:
                    with pa.memory_map(str(part)) as source:
                        reader = pa.ipc.open_file(source)
                        for i in range(reader.num_record_batches):
                            out.write_batch(_cast(reader.get_batch(i), schema))
            parts = [whole]
        os.replace(parts[0], to)
    return pa.ipc.open_file(pa.memory_map(str(to))).read_all()


def _segments(batches: Found, folder: Path) -> tuple[list[Path], pa.Schema | None]:
    """Write batches to a new file each time the schema widens; the files, and the schema that holds them all."""
    parts: list[Path] = []
    schema: pa.Schema | None = None
    out: Any = None
    try:
        for where, batch in _joined(batches):
            wider = batch.schema if schema is None else _unified(schema, batch.schema, where)
            if schema is None or not wider.equals(schema):
                if out is not None:
                    out.close()
                schema = wider
                parts.append(folder / f"{len(parts)}.arrow")
                out = pa.ipc.new_file(str(parts[-1]), schema)
            try:
                out.write_batch(_cast(batch, schema))
            except pa.ArrowInvalid as e:
                raise Bad(f"{where}: {e}") from e
    finally:
        if out is not None:
            out.close()
    return parts, schema


def _joined(batches: Found) -> Found:
    """The same rows in batches that are neither tiny (a row a file) nor over the bounds."""
    held: list[pa.RecordBatch] = []
    start, rows, weight = "", 0, 0

    def whole() -> pa.RecordBatch:
        return held[0] if len(held) == 1 else pa.Table.from_batches(held).combine_chunks().to_batches()[0]

    for where, batch in batches:
        if not batch.num_rows:
            continue
        batch = _large(batch)
        if held and (
            rows + batch.num_rows > ROWS or weight + batch.nbytes > BYTES or not batch.schema.equals(held[0].schema)
        ):
            yield start, whole()
            held, rows, weight = [], 0, 0
        start = start if held else where
        held.append(batch)
        rows, weight = rows + batch.num_rows, weight + batch.nbytes
    if held:
        yield start, whole()


def _large(table: Any) -> Any:
    """Text with 64-bit offsets, since a corpus of over 2 GiB must still combine into one array; no dictionaries."""

    def wide(kind: pa.DataType) -> pa.DataType:
        if pa.types.is_dictionary(kind):  # an Arrow file holds one dictionary a column, batches may bring several
            return wide(kind.value_type)
        text = {pa.string(): pa.large_string(), pa.string_view(): pa.large_string(), pa.binary(): pa.large_binary()}
        return text.get(kind, kind)

    schema = pa.schema([pa.field(f.name, wide(f.type)) for f in table.schema])
    columns = [c.cast(f.type) if c.type != f.type else c for c, f in zip(table.columns, schema, strict=True)]
    return type(table).from_arrays(columns, schema=schema)


def _unified(old: pa.Schema, new: pa.Schema, where: str) -> pa.Schema:
    try:
        return pa.unify_schemas([old, new], promote_options="permissive")
    except pa.ArrowException:
        for f in new:
            known = old.field(f.name).type if f.name in old.names else f.type
            with suppress(pa.ArrowException):
                pa.unify_schemas([pa.schema([(f.name, known)]), pa.schema([f])], promote_options="permissive")
                continue
            raise Bad(f"{where}: column {f.name!r} holds {f.type} here and {known} before; give it one type") from None
        raise


def _cast(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    def column(f: pa.Field) -> pa.Array:
        at = batch.schema.get_field_index(f.name)
        return pa.nulls(batch.num_rows, f.type) if at < 0 else batch.column(at).cast(f.type)

    return pa.RecordBatch.from_arrays([column(f) for f in schema], schema=schema)


# ---- which files, and which reader for them


def _kind(path: Path) -> str | None:
    """The reader for a file by its suffix; a packed file is known by the suffix before."""
    *_, before, last = ["", *path.suffixes] if path.suffixes else ["", ""]
    if last.lower() in PACKED:
        inner = SUFFIXES.get(before.lower())
        return inner if inner in ("jsonl", "csv", "tsv") else None
    return SUFFIXES.get(last.lower())


def _files(path: Path) -> list[Path]:
    """The files that `path` stands for, sorted by name, all of one kind."""
    if not path.exists():
        near = path.parent if path.parent.is_dir() else None
        beside = sorted(p.name for p in near.iterdir() if _kind(p))[:5] if near else []
        raise Bad(f"no file {path}" + (f"; beside it: {', '.join(beside)}" if beside else ""))
    if path.is_file():
        if path.stat().st_size == 0:
            raise Bad(f"{path} is empty")
        if _kind(path) is None:
            raise Bad(f"{path}: {path.suffix or 'a file without a suffix'} is not read here; {KNOWN}")
        return [path]
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text("utf-8")).get("splits", [])
        raise Bad(f"{path} holds splits; read one of them: {', '.join(str(path / s) for s in splits)}")
    shards = sorted(p for p in path.iterdir() if p.is_file() and _visible(p, path) and _kind(p) not in (None, "text"))
    texts = sorted(p for p in path.rglob("*") if p.is_file() and _visible(p, path) and _kind(p) == "text")
    if (path / "state.json").exists():  # a saved `datasets.Dataset`: the .json beside the shards is its own
        shards, texts = [p for p in shards if p.suffix == ".arrow"], []
    kinds = sorted({str(_kind(p)) for p in shards})
    if len(kinds) > 1:
        raise Bad(f"{path} holds files of several kinds ({', '.join(kinds)}); name one file")
    if not shards and not texts:
        raise Bad(f"{path} holds nothing that is read here; {KNOWN}")
    return shards or sorted(texts, key=lambda p: p.relative_to(path).as_posix())  # a README beside shards is not data


def _visible(path: Path, root: Path) -> bool:
    return not any(part.startswith((".", "__")) for part in path.relative_to(root).parts)


def _rows(path: Path, files: list[Path], errors: str) -> Found:
    for f in files:
        if f.stat().st_size == 0 and _kind(f) != "text":
            continue  # an empty shard; when all are, the writer says so
        try:
            yield from READERS[str(_kind(f))](f, path, errors)
        except (pa.ArrowException, OSError, EOFError) as e:
            raise Bad(f"{f} cannot be read: {e}") from e


# ---- readers: each yields (where it stands, a bounded batch)


def _jsonl(path: Path, root: Path, errors: str) -> Found:
    """One object a line; blank lines are passed over."""
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    weight = 0
    for number, line in enumerate(_lines(path), 1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if line.lstrip()[:1] == b"[":
                raise Bad(f"{path} is one JSON array; write one object a line (jq -c '.[]' FILE > FILE.jsonl)")
        if not line or line.isspace():
            continue
        rows.append(_object(line, path, number, errors))
        lines.append(number)
        weight += len(line)
        if len(rows) >= ROWS or weight >= BYTES:
            yield f"{path}, lines {lines[0]} to {number}", _batch(rows, lines, path)
            rows, lines, weight = [], [], 0
    if rows:
        yield f"{path}, lines {lines[0]} to {lines[-1]}", _batch(rows, lines, path)


def _lines(path: Path) -> Iterator[bytes]:
    rest: list[bytes] = []  # of one line that spans blocks
    for block in _blocks(path):
        first, *more = block.split(b"\n")
        rest.append(first)
        if more:
            yield b"".join(rest)
            yield from more[:-1]
            rest = [more[-1]]
    if any(rest):
        yield b"".join(rest)


def _object(line: bytes, path: Path, number: int, errors: str) -> dict[str, Any]:
    import msgspec

    shown = "".join(c if c.isprintable() else "\ufffd" for c in line[:60].decode("utf-8", "replace").strip())
    try:
        value = msgspec.json.decode(line)
    except UnicodeDecodeError:
        if errors == "strict":
            where = f"{path}:{number}: byte {_bad_byte(line)} of the line"
            raise Bad(f'{where} is not UTF-8; errors="replace" reads past it: {shown}') from None
        return _object(line.decode("utf-8", "replace").encode(), path, number, "strict")
    except msgspec.DecodeError as e:
        try:
            value = json.loads(line)  # takes NaN and Infinity, which json.dumps writes and the standard forbids
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair has no UTF-8 form
        except ValueError:
            raise Bad(f"{path}:{number}: not JSON ({str(e)[:80]}): {shown}") from None
    if not isinstance(value, dict):
        raise Bad(f"{path}:{number}: a line must be an object of columns, this is a {type(value).__name__}: {shown}")
    return value


def _batch(rows: list[dict[str, Any]], lines: list[int], path: Path) -> pa.RecordBatch:
    names: dict[str, None] = {}
    for row in rows:
        names.update(dict.fromkeys(row))
    columns = []
    for name in names:
        values = [row.get(name) for row in rows]
        try:
            columns.append(pa.array(values))
        except (pa.ArrowException, OverflowError) as e:
            raise Bad(_mixed(name, values, lines, path, e)) from None
    return pa.RecordBatch.from_arrays(columns, names=list(names))


def _mixed(name: str, values: list[Any], lines: list[int], path: Path, error: Exception) -> str:
    """Name the first line whose value does not fit the ones before it."""
    words = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    kinds = [words.get(type(v)) for v in values]
    first = next((k for k in kinds if k), None)
    for line, kind in zip(lines, kinds, strict=True):
        if kind and kind != first:
            return f"{path}:{line}: column {name!r} holds {kind} here and {first} before; give it one type"
    low, high = 0, len(values)  # the mix is inside lists or objects, or a number is too large: halve to the first line
    while high - low > 1:
        middle = (low + high) // 2
        try:
            pa.array(values[:middle])
            low = middle
        except (pa.ArrowException, OverflowError):
            high = middle
    return f"{path}:{lines[high - 1]}: column {name!r}: {error}"


def _csv(path: Path, root: Path, errors: str) -> Found:
    """Comma- or tab-separated with a header. Read twice: for the narrowest type of each whole column, then for rows."""
    types = _types(path, errors)
    row = 2
    for batch in _parsed(path, errors, types):
        yield f"{path}, from row {row}", batch
        row += batch.num_rows


def _parsed(path: Path, errors: str, types: dict[str, pa.DataType]) -> Any:
    import pyarrow.csv as csv

    source: Any = pa.input_stream(str(path), compression="detect")
    if errors == "replace":
        source = pa.PythonFile(_Replaced(source), mode="r")
    return csv.open_csv(
        source,
        csv.ReadOptions(use_threads=False, block_size=2 * BYTES),  # one thread: errors then carry the row's number
        csv.ParseOptions(delimiter="\t" if _kind(path) == "tsv" else ",", newlines_in_values=True),
        csv.ConvertOptions(column_types=types),
    )


class _Replaced(io.RawIOBase):
    """A stream of bytes with U+FFFD for each byte that is not UTF-8."""

    def __init__(self, source: Any) -> None:
        self.source, self.decoder = source, codecs.getincrementaldecoder("utf-8")("replace")

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            block = self.source.read(max(1, size // 3) if size >= 0 else None)  # a byte may become three
            text = self.decoder.decode(block, final=not block)
            if text or not block:  # an empty answer would mean the end, and a character may be cut in two
                return text.encode()


def _types(path: Path, errors: str) -> dict[str, pa.DataType]:
    """Type of each column over the whole file: Arrow's guess from the first block, made wider where it fails later."""
    wider = {pa.null(): pa.int64(), pa.int64(): pa.float64()}
    known: dict[str, pa.DataType] = {}
    while True:
        try:
            reader = _parsed(path, errors, known)
            names = reader.schema.names
            known = dict(zip(names, reader.schema.types, strict=True))
            if len(known) < len(names):
                raise Bad(f"{path}: column {next(n for n in names if names.count(n) > 1)!r} stands twice in the header")
            for _ in reader:
                pass
        except pa.ArrowInvalid as e:
            at = re.search(r"In CSV column #(\d+)", str(e))
            if not at or not known:
                raise Bad(f"{path}: {e}") from e
            name = list(known)[int(at[1])]
            if known[name] == pa.string():  # text fails only on bytes that are no text
                known[name] = pa.binary()
            else:
                known[name] = wider.get(known[name], pa.string())
        else:
            if pa.binary() in known.values() and errors == "strict":
                raise Bad(f'{path}: byte {_bad_byte(path)} is not UTF-8; errors="replace" reads past it')
            return known


def _parquet(path: Path, root: Path, errors: str) -> Found:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, pre_buffer=False) as file:
        about = file.metadata
        weight = sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)) / max(1, about.num_rows)
        size = int(min(ROWS, max(1, BYTES // max(1, weight))))
        for i, batch in enumerate(file.iter_batches(batch_size=size)):
            yield f"{path}, from row {i * size}", batch


def _text(path: Path, root: Path, errors: str) -> Found:
    """One row a file: its text, and where it lies below the folder."""
    raw = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    try:
        text = raw.decode("utf-8", errors)
    except UnicodeDecodeError as e:
        at = path.stat().st_size - len(raw) + e.start
        raise Bad(f'{path}: byte {at} is not UTF-8; errors="replace" reads past it') from None
    name = path.name if root == path else path.relative_to(root).as_posix()
    yield str(path), pa.record_batch({"text": pa.array([text], pa.large_string()), "path": pa.array([name])})


def _feather(path: Path, root: Path, errors: str) -> Found:
    """Arrow files that may be compressed: unpacked into the cache, where they can be mapped."""
    with pa.memory_map(str(path)) as source:
        for i, batch in enumerate(_open(source)):
            yield f"{path}, batch {i}", batch


def _open(source: pa.NativeFile) -> Iterator[pa.RecordBatch]:
    try:
        file = pa.ipc.open_file(source)
    except pa.ArrowInvalid:
        source.seek(0)
        yield from pa.ipc.open_stream(source)
        return
    for i in range(file.num_record_batches):
        yield file.get_batch(i)


def _mapped(path: Path) -> pa.Table:
    try:
        return pa.Table.from_batches(list(_open(pa.memory_map(str(path)))))
    except (pa.ArrowException, OSError, ValueError) as e:
        raise Bad(f"{path} is no Arrow file, or holds no rows: {e}") from e


def _some(table: pa.Table, name: object) -> pa.Table:
    if not table.num_rows:
        raise Bad(f"{name} holds no rows")
    return table


def _bad_byte(source: Path | bytes) -> int:
    """Offset of the first byte that is not UTF-8, in bytes or in a file read block by block."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    seen = 0
    blocks = [source] if isinstance(source, bytes) else _blocks(source)
    for block in blocks:
        held = len(decoder.getstate()[0])  # bytes of a character begun in the block before
        try:
            decoder.decode(block)
        except UnicodeDecodeError as e:
            return seen - held + e.start
        seen += len(block)
    return seen - len(decoder.getstate()[0])


def _blocks(path: Path) -> Iterator[bytes]:
    with pa.input_stream(str(path), compression="detect") as source:
        while block := source.read(1 << 20):
            yield block


def _hub(name: str) -> pa.Table:
    """A dataset of the Hub, as `datasets` downloads and keeps it; split "train" unless named."""
    parts = HUB.fullmatch(name)
    if parts is None:
        raise Bad(f"hub:{name} is no dataset id; write hub:owner/name, and behind it /config, :split or both")
    try:
        import datasets
    except ImportError:
        raise Bad("hub: needs the package datasets: pip install datasets") from None
    owner, config, split = parts.groups()
    try:
        found = datasets.load_dataset(owner, config, split=split)
    except (OSError, ValueError, RuntimeError) as e:  # not found, no connection, unknown split or config
        raise Bad(f"hub:{name} cannot be loaded: {str(e).splitlines()[0] if str(e) else type(e).__name__}") from e
    if isinstance(found, dict):
        if "train" not in found:
            raise Bad(f"hub:{name} has the splits {', '.join(found)}; name one: hub:{name}:{next(iter(found))}")
        found = found["train"]
    return _large(_some(found.data.table, f"hub:{name}"))


READERS: dict[str, Callable[[Path, Path, str], Found]] = {
    "jsonl": _jsonl, "csv": _csv, "tsv": _csv, "parquet": _parquet, "text": _text, "feather": _feather,
}  # fmt: skip
