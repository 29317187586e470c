"""The table of all docstrings: from the cache, or made and kept there."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from trainlore.errors import Bad
from trainlore.primitives import reading
from trainlore.worlds.python_docs.extracting import extracted, mapped
from trainlore.worlds.python_docs.packages import PACKAGES, located

VERSION = 1  # raise when the same packages would give another table


def gather(
    cache: Path | None = None,
    packages: Sequence[str] | None = None,
    least_mb: float = 10,
    *,
    workers: int | None = None,
) -> pa.Table:
    """Every documented module, class, function and method of the packages: one row each.

    Columns: `text` (the docstring, cleaned), `signature` (`def name(args) -> ret:`, `class Name(Base):`), `code` (what
    follows the docstring, indented by four, cut at a line end; for classes and modules the headers they hold), `name`
    (dotted), `kind` (module, class, function, method), `domain` (the package), `path` (inside the package), `line`.

    Without `packages`: those of `PACKAGES` that are installed, and if they hold less than `least_mb` of docstrings,
    all other installed ones too. Rows come in the order of domain, path and line, whatever `workers` is. `cache` is a
    folder; its default lies under $TRAINLORE_HOME or ~/.cache/trainlore.
    """
    if cache is None:
        from trainlore.store import home

        cache = home() / "worlds"
    if isinstance(packages, str):
        packages = (packages,)
    found = located(PACKAGES if packages is None else packages, must=packages is not None)
    table = _kept(found, Path(cache), workers)
    if packages is None and _size(table) < least_mb:
        found = located([*found, *sorted(importlib.metadata.packages_distributions())], must=False)
        table = _kept(found, Path(cache), workers)
        if _size(table) < least_mb:
            held = f"the {len(found)} packages here hold {_size(table):.1f} MB of docstrings"
            raise Bad(f"{held}, {least_mb} are asked for; install more (scipy, sympy), or lower least_mb")
    return table


def megabytes(table: pa.Table) -> dict[str, float]:
    """Docstrings of each domain in MB (10^6 bytes of UTF-8), in the order of names."""
    sizes = pa.table({"domain": table["domain"], "bytes": pc.binary_length(table["text"])})
    sums = sizes.group_by("domain").aggregate([("bytes", "sum")]).sort_by("domain")
    return {d: n / 1e6 for d, n in zip(sums["domain"].to_pylist(), sums["bytes_sum"].to_pylist(), strict=True)}


def _size(table: pa.Table) -> float:
    return sum(megabytes(table).values())


def fingerprint(table: pa.Table) -> str:
    """Hash of the rows in their order, the same however they are chunked or kept."""
    digest = hashlib.blake2b(
        repr(list(zip(table.column_names, map(str, table.schema.types), strict=True))).encode(), digest_size=16
    )
    for column in table.columns:
        for at in range(0, len(column), 1 << 16):
            piece = pa.concat_arrays(column.slice(at, 1 << 16).chunks)
            digest.update(pa.record_batch({"c": piece}).serialize())
    return digest.hexdigest()


def _kept(found: dict[str, tuple[Path, str]], cache: Path, workers: int | None) -> pa.Table:
    """The table of these packages from the cache, or made and kept there."""
    versions = {name: version for name, (_, version) in sorted(found.items())}
    key = hashlib.blake2b(repr((VERSION, sys.version_info[:2], versions)).encode(), digest_size=10).hexdigest()
    path = cache / f"python_docs-{key}.arrow"
    table = mapped(path)
    if table is not None:
        return table
    with _alone(path):
        table = mapped(path)  # another process may have made it meanwhile
        if table is None:
            table = about(extracted(found, workers), packages={n: v.split()[0] for n, v in versions.items()})
            with suppress(OSError):  # a full or read-only disk costs the next call some seconds, not this one its table
                _write(table, path)
                return mapped(path) or table
    return table


def _write(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".writing-") as folder:
        part = Path(folder) / "part.arrow"
        with pa.ipc.new_file(str(part), table.schema) as out:
            out.write_table(table, max_chunksize=reading.ROWS)
        os.replace(part, path)


class _alone:
    """One process at a time makes a table; where a lock cannot be had, all make it, and the last one's stays."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: Any = None

    def __enter__(self) -> None:
        with suppress(ImportError, OSError):
            from filelock import FileLock

            self.path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{self.path}.lock")
            lock.acquire()
            self.lock = lock

    def __exit__(self, *error: object) -> None:
        if self.lock is not None:
            self.lock.release()


def about(table: pa.Table, **more: Any) -> pa.Table:
    """The table with how many rows and MB each domain has in its metadata."""
    counts = {d["values"]: d["counts"] for d in pc.value_counts(table["domain"]).to_pylist()}
    old = json.loads((table.schema.metadata or {}).get(b"trainlore", b"{}"))
    size = {d: round(mb, 3) for d, mb in megabytes(table).items()}
    told = {**old, "world": "python-docs", "rows": dict(sorted(counts.items())), "megabytes": size, **more}
    return table.replace_schema_metadata({"trainlore": json.dumps(told)})
