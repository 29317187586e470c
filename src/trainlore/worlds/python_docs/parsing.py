"""One source file to rows: a docstring each, with the signature and code it belongs to."""

from __future__ import annotations

import ast
import copy
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CODE = 2000  # characters of code kept
COLUMNS = ("text", "signature", "code", "name", "kind", "domain", "path", "line")
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
