"""The embedded world: docstrings and source of the Python packages installed beside it, a package a domain.

Tens of MB of real English and code that need no download; of a very large package a fixed part. The files are parsed,
never imported; the table is kept as an Arrow file under the cache folder and mapped from there. What it holds depends
on the versions installed: report `fingerprint(table)` with every number measured on it.
"""

from __future__ import annotations

import ast
import copy
import gc
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import textwrap
import tokenize
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.errors import Bad
from trainlore.primitives import reading

VERSION = 1  # raise when the same packages would give another table
PACKAGES = (  # what every install of trainlore brings, and what these bring; the ones missing are passed over
    "stdlib", "torch", "transformers", "datasets", "tokenizers", "safetensors", "huggingface_hub", "numpy", "scipy",
    "sklearn", "matplotlib", "pandas", "pyarrow", "sympy", "networkx", "mpmath", "fsspec", "jinja2", "joblib",
    "fontTools", "PIL", "rich", "typer", "click", "pygments", "msgspec", "requests", "yaml", "tqdm", "packaging",
    "pyparsing", "dateutil", "filelock",
)  # fmt: skip
DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "PyYAML", "dateutil": "python-dateutil"}
SKIPPED = re.compile(  # folders: tests, copies of other packages, and what is no library
    r"_?tests?|_?testing|idle_test|_test_common|.*vendor.*|_?extern(al)?s?|_?third_?party|array_api_(compat|extra)"
    r"|_uarray|cobyqa|pyprima|site-packages|dist-packages|idlelib|lib2to3|ensurepip|turtledemo|__.*__|\..*"
)
SKIPPED_FILES = re.compile(r"test_.*|conftest|modular_.*")  # transformers writes modeling_*.py from modular_*.py
SOURCE = 16e6  # bytes of source read of a package, or torch and transformers would be most of the table and the wait
CODE = 2000  # characters of code kept
COLUMNS = ("text", "signature", "code", "name", "kind", "domain", "path", "line")
SCHEMA = pa.schema([(c, pa.int32() if c == "line" else pa.large_string()) for c in COLUMNS])


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
    found = _located(PACKAGES if packages is None else packages, must=packages is not None)
    table = _kept(found, Path(cache), workers)
    if packages is None and _size(table) < least_mb:
        found = _located([*found, *sorted(importlib.metadata.packages_distributions())], must=False)
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


# ---- the worlds made of it


def parts(table: pa.Table, target: str = "scipy", held_out: float = 0.1) -> dict[str, pa.Table]:
    """A pool to choose from and a domain to choose for.

    `pool`: the other domains. `held_out`: a share of their rows, never to be trained on. `target_dev` and
    `target_test`: the halves of the target, one to select with and one to judge by. The side of a row is the hash of
    its text, so copies are never on two sides, and a row is on the same side in every install; pool rows whose text
    also stands in the target are left out.
    """
    if not 0 <= held_out < 1:
        raise Bad(f"held_out={held_out}: a share of the rows, from 0 to below 1")
    domains = pc.unique(table["domain"]).to_pylist()
    if target not in domains:
        raise Bad(f"target={target!r} is no domain of this table; there are {', '.join(domains)}")
    names = hashes(table["text"], "side")
    share = names / 2.0**64
    mine = pc.equal(table["domain"], target).to_numpy()
    pool = ~mine & ~np.isin(names, names[mine])
    rows = {
        "pool": pool & (share >= held_out),
        "target_dev": mine & (share < 0.5),
        "target_test": mine & (share >= 0.5),
        "held_out": pool & (share < held_out),
    }
    return {name: _about(table.filter(pa.array(mask)).combine_chunks()) for name, mask in rows.items()}


def summaries(table: pa.Table, longest: int = 1200) -> pa.Table:
    """Functions, methods and classes to be summed up: `prompt` (signature and code), `completion` (the first line).

    With `domain` and `name`. Rows without code, and first lines that are no sentence (a signature, a field list, three
    words), are left out. A prompt has at most `longest` characters and ends with a blank line.
    """
    line = pc.list_element(pc.split_pattern(table["text"], "\n", max_splits=1), 0)
    keep = pc.and_(pc.not_equal(table["kind"], "module"), pc.greater(pc.utf8_length(table["code"]), 20))
    keep = pc.and_(keep, pc.match_substring_regex(line, r"^[A-Z`\"*\[][^\n]{15,158}[.!?`\w)]$"))
    keep = pc.and_(keep, pc.match_substring_regex(line, r"^\S+\s+\S+\s+\S+\s+\S+"))
    keep = pc.and_(
        keep, pc.invert(pc.match_substring_regex(line, r"^(Args|Parameters|Returns|See|Copied from|TODO)\b|->"))
    )
    table, line = table.filter(keep), line.filter(keep)
    blank, end = (pa.scalar(c, pa.large_string()) for c in ("\n", "\n\n"))
    prompt = pc.binary_join_element_wise(table["signature"], table["code"], blank)
    prompt = pc.binary_join_element_wise(pc.utf8_slice_codeunits(prompt, 0, longest - 2), end, pa.scalar("", end.type))
    return pa.table({"prompt": prompt, "completion": line, "domain": table["domain"], "name": table["name"]})


def preferences(table: pa.Table, longest: int = 1200) -> pa.Table:
    """Right against wrong: `prompt`, `chosen` (its first line), `rejected` (another row's of the same domain and about
    the same length, named by hash, never the same words), `domain`, `name`.
    """
    rows = summaries(table, longest)
    line, domain = _codes(rows["completion"]), _codes(rows["domain"])
    length = pc.utf8_length(rows["completion"]).to_numpy() // 8
    order = np.lexsort((hashes(rows["name"], "rejected"), length, domain))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    other = np.full(len(order), -1)
    for step in (
        1,
        -1,
        2,
        -2,
        3,
        -3,
        5,
        -5,
        8,
        -8,
    ):  # the neighbour in domain, length and hash that says something else
        near = order[np.clip(place + step, 0, max(0, len(order) - 1))]
        fits = (other < 0) & (domain[near] == domain) & (line[near] != line)
        other[fits] = near[fits]
    keep = np.flatnonzero(other >= 0)
    made = rows.take(keep).rename_columns(["prompt", "chosen", "domain", "name"])
    return made.add_column(2, "rejected", rows["completion"].take(other[keep]))


class Parts(dict[str, pa.Table]):
    """The tables of this world by name, each made when it is asked for and then kept.

    `pool`, `target_dev`, `target_test`, `held_out`, `all`; and made of the pool and of the held-out rows:
    `summaries`, `preferences`, `summaries_test`.
    """

    def __init__(self, cache: Path | None = None, packages: Sequence[str] | None = None, target: str = "scipy") -> None:
        super().__init__()
        self._how = cache, packages, target

    def __missing__(self, name: str) -> pa.Table:
        cache, packages, target = self._how
        if name == "all":
            self[name] = gather(cache, packages)
        elif name in ("pool", "target_dev", "target_test", "held_out"):
            self.update(parts(self["all"], target))
        elif name in ("summaries", "summaries_test"):
            self[name] = summaries(self["pool" if name == "summaries" else "held_out"])
        elif name == "preferences":
            self[name] = preferences(self["pool"])
        else:
            raise KeyError(name)
        return self[name]


def _codes(column: Any) -> np.ndarray:
    """A whole number for each string of an Arrow column, the same for equal ones."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return np.asarray(array.dictionary_encode().indices)


def hashes(column: Any, salt: str) -> np.ndarray:
    """A number below 2^64 for each string of an Arrow column, named by the salt: uint64 (N,), the same everywhere."""
    key = salt.encode()
    raw = b"".join(
        hashlib.blake2b(s.encode(), digest_size=8, key=key).digest()
        for chunk in column.chunks
        for s in chunk.to_pylist()
    )
    return np.frombuffer(raw, dtype="<u8")


# ---- where packages lie, and what is kept of them


def _located(packages: Iterable[str], must: bool) -> dict[str, tuple[Path, str]]:
    """Each package's folder (or its one file) and version, found without importing it."""
    found: dict[str, tuple[Path, str]] = {}
    for name in packages:
        if name in found:
            continue
        root = Path(sysconfig.get_path("stdlib")) if name == "stdlib" else _root(name)
        if root is None or not root.exists():
            if must:
                raise Bad(f"package {name!r} is not installed, or has no Python source; name others, or install it")
            continue
        found[name] = root, sys.version if name == "stdlib" else _version(name, root)
    return found


def _root(name: str) -> Path | None:
    if not name.isidentifier() or name in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None


def _version(name: str, root: Path) -> str:
    try:
        return importlib.metadata.version(DISTRIBUTIONS.get(name, name))
    except importlib.metadata.PackageNotFoundError:  # somebody's own package: known by its files
        stats = [(str(f), f.stat().st_mtime_ns, size) for f, _, size in _sources(root, SOURCE)]
        return hashlib.blake2b(repr(stats).encode(), digest_size=8).hexdigest()


def _kept(found: dict[str, tuple[Path, str]], cache: Path, workers: int | None) -> pa.Table:
    """The table of these packages from the cache, or made and kept there."""
    versions = {name: version for name, (_, version) in sorted(found.items())}
    key = hashlib.blake2b(repr((VERSION, sys.version_info[:2], versions)).encode(), digest_size=10).hexdigest()
    path = cache / f"python_docs-{key}.arrow"
    table = _map(path)
    if table is not None:
        return table
    with _alone(path):
        table = _map(path)  # another process may have made it meanwhile
        if table is None:
            table = _about(_extracted(found, workers), packages={n: v.split()[0] for n, v in versions.items()})
            with suppress(OSError):  # a full or read-only disk costs the next call some seconds, not this one its table
                _write(table, path)
                return _map(path) or table
    return table


def _map(path: Path) -> pa.Table | None:
    with suppress(OSError, pa.ArrowInvalid):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return None


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


def _about(table: pa.Table, **more: Any) -> pa.Table:
    """The table with how many rows and MB each domain has in its metadata."""
    counts = {d["values"]: d["counts"] for d in pc.value_counts(table["domain"]).to_pylist()}
    old = json.loads((table.schema.metadata or {}).get(b"trainlore", b"{}"))
    size = {d: round(mb, 3) for d, mb in megabytes(table).items()}
    about = {**old, "world": "python-docs", "rows": dict(sorted(counts.items())), "megabytes": size, **more}
    return table.replace_schema_metadata({"trainlore": json.dumps(about)})


# ---- reading, spread over processes


def _sources(root: Path, most: float) -> list[tuple[Path, str, int]]:
    """The Python files of a package that are read: file, place in the package, bytes; in the order of places.

    Of a package with over `most` bytes of source, the files whose places hash lowest.
    """
    if root.suffix == ".py":
        return [(root, root.name, root.stat().st_size)]
    found = []
    for folder, inner, files in os.walk(root):
        inner[:] = [d for d in inner if not SKIPPED.fullmatch(d)]
        for file in files:
            if file.endswith(".py") and not SKIPPED_FILES.fullmatch(file[:-3]):
                path = Path(folder) / file
                found.append((path, path.relative_to(root).as_posix(), path.stat().st_size))
    if sum(size for *_, size in found) > most:
        found.sort(key=lambda f: hashlib.blake2b(f[1].encode()).digest())
        upto = np.cumsum([size for *_, size in found])
        found = found[: int(np.searchsorted(upto, most)) + 1]
    return sorted(found, key=lambda f: f[1])


def _extracted(found: dict[str, tuple[Path, str]], workers: int | None) -> pa.Table:
    """Rows of all packages in the order of domain, path and line."""
    jobs, sizes = [], []
    for domain in sorted(found):
        for file, where, size in _sources(found[domain][0], SOURCE):
            jobs.append((str(file), domain, where))
            sizes.append(size)
    if not jobs:
        raise Bad(f"no Python source under {', '.join(str(root) for root, _ in found.values())}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = max(1, min(workers or min(cores, 8), len(jobs) // 64)) if sys.executable else 1
    shares: list[list[int]] = [[] for _ in range(count)]
    load = [0] * count
    for i in sorted(range(len(jobs)), key=lambda i: -sizes[i]):  # the largest first, each to the least loaded
        least = load.index(min(load))
        shares[least].append(i)
        load[least] += sizes[i] + 2000
    return _spread(jobs, [sorted(share) for share in shares])


def _spread(jobs: list[tuple[str, str, str]], shares: list[list[int]]) -> pa.Table:
    """Read each share in a process of its own but the first, which is read here, as are those whose process fails.

    Plain subprocesses rather than multiprocessing: nothing of the caller's `__main__` runs again in them.
    """
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / f"{k}.arrow" for k in range(len(shares))]
        running: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for k in range(1, len(shares)):
                todo = Path(folder) / f"{k}.json"
                todo.write_text(json.dumps([[i, *jobs[i]] for i in shares[k]]))
                command = [sys.executable, "-P", __file__, str(todo), str(places[k])]
                beside = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
                with suppress(OSError):
                    running[k] = subprocess.Popen(command, env=beside, stderr=subprocess.DEVNULL)
            tables = {0: _rows([(i, *jobs[i]) for i in shares[0]])}
            for k in range(1, len(shares)):
                whole = k in running and running[k].wait() == 0
                table = _map(places[k]) if whole else None
                tables[k] = table if table is not None else _rows([(i, *jobs[i]) for i in shares[k]])
        finally:
            for process in running.values():
                process.kill()
                process.wait()
        table = pa.concat_tables([tables[k] for k in range(len(shares))])
        order = np.argsort(table["job"].to_numpy(), kind="stable")
        return table.drop_columns(["job"]).take(order).combine_chunks()


def _work(todo: str, place: str) -> None:
    """What a process of `_spread` does."""
    table = _rows([tuple(job) for job in json.loads(Path(todo).read_text())])
    with pa.ipc.new_file(place, table.schema) as out:
        out.write_table(table)


def _rows(jobs: list[tuple[int, str, str, str]]) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in ("job", *COLUMNS)}
    collects = gc.isenabled()
    gc.disable()  # syntax trees hold no cycles, and looking for some in them doubles the time
    try:
        for i, file, domain, where in jobs:
            for row in documented(Path(file).read_bytes(), domain, where):
                for name, value in zip(columns, (i, *row), strict=True):
                    columns[name].append(value)
    finally:
        if collects:
            gc.enable()
    return pa.table(columns, schema=pa.schema([pa.field("job", pa.int32()), *SCHEMA]))


# ---- reading one file

Row = tuple[str, str, str, str, str, str, str, int]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def documented(raw: bytes, domain: str, where: str) -> Iterator[Row]:
    """The rows of one source file in the order of lines. A file that does not parse has none."""
    if b'"""' not in raw and b"'''" not in raw:
        return  # a docstring in single quotes alone is too rare to parse every file for
    text = _decoded(raw)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in other people's strings
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    module = ".".join([*([] if domain == "stdlib" else [domain]), *Path(where).with_suffix("").parts]).removesuffix(
        ".__init__"
    )
    if where == f"{domain}.py":
        module = domain
    source = _Source(text)
    doc = ast.get_docstring(tree)
    if doc and _says(doc):
        yield _clean(doc), f"# module {module}", source.outline(tree.body[1:]), module, "module", domain, where, 1
    for node, owner, kind in _nested(tree.body, module, "function"):
        doc = ast.get_docstring(node)
        if doc and _says(doc):
            code = source.outline(node.body[1:]) if kind == "class" else source.after(node)
            yield _clean(doc), source.header(node), code, f"{owner}.{node.name}", kind, domain, where, node.lineno


def _nested(body: list[ast.stmt], owner: str, kind: str) -> Iterator[tuple[Any, str, str]]:
    """Classes, functions and methods, also those defined under an `if`, `try` or `with`."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield node, owner, "class"
            yield from _nested(node.body, f"{owner}.{node.name}", "method")
        elif isinstance(node, DEFINITIONS):
            yield node, owner, kind
        elif isinstance(node, ast.If | ast.Try | ast.With):
            for inner in ("body", "handlers", "orelse", "finalbody"):
                for held in getattr(node, inner, []):
                    yield from _nested(held.body if inner == "handlers" else [held], owner, kind)


def _says(doc: str) -> bool:
    return len(doc.split(None, 2)) > 2  # at least three words


def _clean(text: str) -> str:
    """Half of a surrogate pair, which escapes can write, has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def _decoded(raw: bytes) -> str:
    """Source text by its own encoding line, with one kind of line end; what is not in that encoding becomes U+FFFD."""
    lines = iter(raw.splitlines(keepends=True)[:2])
    try:
        encoding = tokenize.detect_encoding(lambda: next(lines, b""))[0]
    except SyntaxError:
        encoding = "utf-8-sig"
    return raw.decode(encoding, "replace").replace("\r\n", "\n").replace("\r", "\n")


class _Source:
    """Pieces of a source file as text. Positions of `ast` count bytes in a line."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.headers: dict[int, str] = {}

    def header(self, node: Any) -> str:
        """`def name(args) -> ret:` or `class Name(Base):` on one line."""
        if node.lineno not in self.headers:
            first = node.body[0]
            at = first.decorator_list[0] if getattr(first, "decorator_list", None) else first
            lines = self.lines[node.lineno - 1 : at.lineno]
            lines[-1] = lines[-1].encode()[: at.col_offset].decode("utf-8", "replace")
            lines[0] = (
                lines[0].encode()[node.col_offset :].decode("utf-8", "replace")
                if len(lines) > 1
                else lines[0][node.col_offset :]
            )
            text = " ".join(line.strip() for line in lines).strip()
            if "#" in text or not text.endswith(":"):
                bare = copy.copy(node)
                bare.body, bare.decorator_list = [], []
                text = ast.unparse(bare)
            text = text.replace("( ", "(").replace(", )", ")").replace(",)", ")") if len(lines) > 1 else text
            self.headers[node.lineno] = _clean(text)
        return self.headers[node.lineno]

    def after(self, node: Any) -> str:
        """The body behind the docstring, indented by four, cut at a line end."""
        first, rest = node.body[0], node.body[1:]
        if not rest or rest[0].lineno <= first.end_lineno:
            return ""
        lines: list[str] = []
        size = 0
        for line in self.lines[first.end_lineno : node.end_lineno]:
            size += len(line) + 1
            if size > CODE + 4 * len(lines) + first.col_offset * len(lines):
                break
            lines.append(line)
        code = textwrap.indent(textwrap.dedent("\n".join(lines)), "    ").strip("\n")
        return _clean(code if len(code) <= CODE else code[:CODE].rpartition("\n")[0])

    def outline(self, body: list[ast.stmt]) -> str:
        """The headers of what is defined in a class or module, and its fields, indented by four."""
        lines: list[str] = []
        for node in body:
            if isinstance(node, DEFINITIONS):
                lines.append(f"    {self.header(node)} ...")
            elif isinstance(node, ast.AnnAssign | ast.Assign) and node.lineno == node.end_lineno:
                lines.append("    " + self.lines[node.lineno - 1].strip())
        while sum(map(len, lines)) + len(lines) > CODE:
            lines.pop()
        return _clean("\n".join(lines))


if __name__ == "__main__":
    _work(*sys.argv[1:])
