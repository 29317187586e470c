"""Which methods there are, known without importing one of them."""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from trainlore.errors import Bad
from trainlore.slots import LIFE

HERE = Path(__file__).parent
INDEX = HERE / "_index.json"
GROUP = "trainlore.methods"
VERBS = ("Curate", "Shape", "Fit", "Measure", "Part")
LITERALS = (
    "needs", "gives", "null", "tiny", "ranges", "rowwise", "keeps", "known", "tolerance", "alone", "sharded",
    "needs_memory",
)  # fmt: skip
RANGES = re.compile(
    r"^    (?:ranges = |alone = \"|sharded = True|needs_memory = ).*\n", re.M
)  # what is told of a method, beside what it does: no part of what was measured


def scan(folder: Path, package: str) -> dict[str, dict[str, Any]]:
    """Read every file below the folder as text: its method class, card, fields, slots and prose."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("[a-z]*.py")):
        source = path.read_text()
        module = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
        for node in ast.parse(source).body:
            entry = _entry(node, module, source) if isinstance(node, ast.ClassDef) else None
            if entry is None:
                continue
            name = entry["card"]["name"]
            if name in found:
                raise Bad(f"two methods are called {name!r}: {found[name]['at']} and {entry['at']}")
            found[name] = entry
    return found


def _entry(node: ast.ClassDef, module: str, source: str) -> dict[str, Any] | None:
    mark = next(
        (d for d in node.decorator_list if isinstance(d, ast.Call) and getattr(d.func, "id", "") == "method"), None
    )
    if mark is None:
        return None
    verb = next((getattr(b, "id", "") for b in node.bases if getattr(b, "id", "") in VERBS), None)
    if verb is None:
        raise Bad(f"{module}: {node.name} is marked as a method but is none of {', '.join(VERBS)}")
    try:
        card = {k.arg: ast.literal_eval(k.value) for k in mark.keywords if k.arg}
    except ValueError:
        raise Bad(f"{module}: @method takes literals only") from None
    fields: dict[str, dict[str, Any]] = {}
    body: list[Any] = node.body
    for at, item in enumerate(body):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and "ClassVar" not in ast.unparse(item.annotation)
        ):
            after = body[at + 1] if at + 1 < len(body) else None
            says = (
                isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            )
            fields[item.target.id] = {
                "type": ast.unparse(item.annotation),
                "default": None if item.value is None else ast.unparse(item.value),
                "doc": " ".join(after.value.value.split()) if says else "",  # type: ignore[union-attr]
            }
    literals = {}
    for item in body:
        target = (
            item.targets[0]
            if isinstance(item, ast.Assign)
            else item.target
            if isinstance(item, ast.AnnAssign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and target.id in LITERALS
            and item.value is not None
            and target.id not in fields
        ):
            try:
                literals[target.id] = ast.literal_eval(item.value)
            except ValueError:
                literals[target.id] = ast.unparse(item.value)
    doc = ast.get_docstring(node) or ""
    functions = [f for f in node.body if isinstance(f, ast.FunctionDef)]
    return {
        "at": f"{module}:{node.name}",
        "kind": verb,
        "line": node.lineno,
        "card": card,
        "slots": [f.name for f in functions if not f.name.startswith("_") and f.name not in LIFE],
        "fields": fields,
        **literals,
        "summary": doc.splitlines()[0] if doc else "",
        "doc": doc,
        "source": hashlib.blake2b(RANGES.sub("", source).encode(), digest_size=8).hexdigest(),
    }


@cache
def index() -> dict[str, dict[str, Any]]:
    """All methods by name: ours from the generated index, other people's from their packages."""
    from importlib.metadata import entry_points

    ours = json.loads(INDEX.read_text())
    for point in entry_points(group=GROUP):
        spec = importlib.util.find_spec(point.value)  # finds a top-level package without importing it
        for place in (spec.submodule_search_locations or []) if spec else []:
            for name, entry in scan(Path(place), point.value).items():
                if name in ours:
                    raise Bad(f"{point.value} brings a method {name!r}, which is already at {ours[name]['at']}")
                ours[name] = {**entry, "from": point.name}
    return ours


def entry(name: str) -> dict[str, Any]:
    """One method's entry. Raises Bad with the nearest names."""
    if name not in index():
        raise Bad(f"no method {name!r}" + near(name, index()))
    return index()[name]


def near(name: str, names: Any) -> str:
    """'; did you mean x?' or nothing."""
    close = difflib.get_close_matches(str(name), list(names), n=3, cutoff=0.55)
    return f"; did you mean {' or '.join(close)}?" if close else ""


def load(name: str) -> Any:
    """Import one method's module and give its class."""
    module, _, attribute = entry(name)["at"].partition(":")
    return getattr(importlib.import_module(module), attribute)


def by_class(name: str) -> Any:
    """The method whose class has this name: what `trainlore.DSIR` gives."""
    for method, e in index().items():
        if e["at"].endswith(f":{name}"):
            return load(method)
    raise AttributeError(f"module 'trainlore' has no attribute {name!r}")


def generate() -> str:
    """The text of _index.json as the files say it now."""
    found = scan(HERE / "methods", "trainlore.methods")
    return json.dumps({name: found[name] for name in sorted(found)}, indent=1) + "\n"
