"""Write everything that is generated from the method files and the results: index, pages, schema. `--check` only compares.

    python tools/generate.py            write what is not as the files say
    python tools/generate.py --check    write nothing; exit 1 and name what is stale

mkdocs.yml names this file as a hook too, which hangs the page of every method into the site's navigation. Loads no torch.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from trainlore import cards, papers, recipe, registry, sources
from trainlore.races import published

PAGES = ROOT / "docs" / "methods"
METHODS = ROOT / "src" / "trainlore" / "methods"
TRIES, PAUSE = 5, 0.4  # somebody may be in the middle of saving a file


def main() -> int:
    """Exit 1 if something generated was not what the files say (and, without --check, make it so)."""
    check = "--check" in sys.argv
    made = settled()
    gone = [p for p in sorted(PAGES.glob("*.md")) if p not in made]
    stale = [p for p, text in made.items() if not p.exists() or p.read_text() != text]
    if not check:
        for path in stale:
            whole(path, made[path])
        for path in gone:
            path.unlink()
    for path in (*stale, *gone):
        print(("stale: " if check else "removed " if path in gone else "wrote ") + path.relative_to(ROOT).as_posix())
    return int(check and bool(stale or gone))


def settled() -> dict[Path, str]:
    """`outputs`, tried again a few times while a file is half written."""
    for n in range(TRIES):
        try:
            return outputs()
        except (SyntaxError, ValueError, OSError) as error:
            fault = error
        if n < TRIES - 1:
            time.sleep(PAUSE)
    where = "".join(f"\n  {path.relative_to(ROOT)}" for path in broken()) if isinstance(fault, SyntaxError) else ""
    raise SystemExit(f"cannot generate: {type(fault).__name__}: {fault}{where}")


def broken() -> Iterable[Path]:
    """The method files that are no Python."""
    for path in sorted(METHODS.rglob("*.py")):
        try:
            ast.parse(path.read_text())
        except SyntaxError:
            yield path


def whole(path: Path, text: str) -> None:
    """Write a file beside its place and move it there: whoever reads it meanwhile sees the old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(text)
    os.replace(part, path)


def outputs() -> dict[Path, str]:
    """The text of every generated file as the method files and the results say it now."""
    text = registry.generate()
    index: dict[str, Any] = json.loads(text)
    found = newest((p for p in (ROOT / "results").glob("*/*.jsonl") if p.parent.name != "races"), index)
    here = lambda: index  # the pages speak of our own methods as they are now: no plugin, no older index
    with (
        patch.object(registry, "index", here),
        patch.object(cards, "index", here),
        patch.object(cards, "results", lambda: found),
    ):
        pages = {PAGES / f"{name}.md": cards.page(name) for name in sorted(index)}
        pages[PAGES / "index.md"] = cards.overview()
        pages[ROOT / "docs" / "papers.md"] = literature(index)
        pages[ROOT / "docs" / "laws.md"] = contract(index)
    pages[ROOT / "docs" / "measured.md"] = published.page(ROOT / "results" / "races")
    return {
        registry.INDEX: text,
        cards.RESULTS: json.dumps(found, indent=1, sort_keys=True) + "\n",
        ROOT / "docs" / "recipe.schema.json": json.dumps(schema(index), indent=1) + "\n",
        **{path: re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n" for path, page in pages.items()},
    }


# ---- results


def newest(files: Iterable[Path], index: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The latest line of each method there is: by its date, and among equals the last one written."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(files):
        for number, line in enumerate(path.read_text().splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                name, date = row["method"], row.get("date", "")
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{path.name}, line {number}, is no result: {error}") from None
            if name in index and date >= found.get(name, {}).get("date", ""):
                found[name] = row
    return found


# ---- the literature


def literature(index: dict[str, Any]) -> str:
    """All papers by family, each with the methods that implement it or the reason why there is none."""
    rows = papers.papers(index)
    having = [p for p in rows if p["methods"]]
    families = sorted({p["family"] for p in rows})
    lines = [
        "# Papers",
        "",
        f"The literature this library is measured against: {len(rows)} papers in {len(families)} families, {len(having)} of",
        "them with a method here. Every other one has a sentence that says why not, or what it would take. The same list on the",
        "command line is `trainlore papers`, and `trainlore search` ranks it by a question.",
        "",
        "Sentences that say *not built yet* are openings: see [how a method is made](methods.md).",
    ]
    for family in families:
        mine = [p for p in rows if p["family"] == family]
        lines += ["", f"## {family}", "", "| paper | | methods, or why there is none |", "|---|---|---|"]
        for p in mine:
            links = ", ".join(f"[{name}](methods/{name}.md)" for name in p["methods"])
            lines.append(f"| {p['id']} | {plain(p['title'])} | {links or plain(p['reason'])} |")
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is, inside a table's cell."""
    return re.sub(r"([\\`*_\[\]<>|$])", r"\\\1", text)


# ---- the contract

CONTRACT = """# The laws

Every method keeps the same contract, whoever wrote it. `trainlore check NAME` tries it on one method, `make test` on all of ours, and
`trainlore.checks.check(NAME)` gives a list of what is broken. Each law is a function of `src/trainlore/checks.py`; its name is what a test
reports.

Methods are tried in their [tiny world](worlds.md#tiny-worlds), as their `tiny` says, for a dozen steps.
"""
EXCEPTIONS = """
## Exceptions

A method that cannot keep a law says so on itself, with the reason, and the law is then expected to fail: an exception that no longer holds
must go.

```python
known = {"law": "why not"}
```
"""
PAIRS = """
## In company

Beside these, parts of one world are tried in pairs (some of the ordered pairs in every test run, all of them with `--all-pairs`): two parts either
train to finite weights or are refused with a reason before anything runs, and a part at its null changes no bit of a training that
another part is in.
"""


def contract(index: dict[str, Any]) -> str:
    """The laws by what they hold for, as the docstrings of checks.py have them; read as text, for the module needs torch."""
    tree = ast.parse((ROOT / "src" / "trainlore" / "checks.py").read_text())
    says = {f.name: ast.get_docstring(f) or "" for f in tree.body if isinstance(f, ast.FunctionDef)}
    lists = {
        item.target.id: [ast.unparse(law) for law in item.value.elts]
        for item in tree.body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and isinstance(item.value, ast.List)
    }
    text = CONTRACT
    for name, title in {"EVERY": "Of every method", "PARTS": "Of parts", "STEPPED": "Of steps"}.items():
        rows = [f"| `{law}` | {plain(' '.join(says[law].split()))} |" for law in lists[name]]
        text += "\n".join(["", f"## {title}", "", "| law | |", "|---|---|", *rows, ""])
    excepted = [
        f"| [{name}](methods/{name}.md) | `{law}` | {plain(why)} |"
        for name, e in sorted(index.items())
        for law, why in sorted(e.get("known", {}).items())
    ]
    table = ["", "| method | law | why not |", "|---|---|---|", *excepted, ""] if excepted else [""]
    return text + PAIRS + EXCEPTIONS + "\n".join(table)


# ---- the schema of a recipe

AMOUNT = {"type": "string", "pattern": r"^-?[0-9][0-9_,.]*(e[-+]?[0-9]+)?[kKMBGT]?( [a-z]+)?$"}
NOUN = {"type": "string", "pattern": r"^\$[A-Za-z_]\w*$"}
SIMPLE: dict[str, dict[str, Any]] = {
    "int": {"anyOf": [{"type": "integer"}, AMOUNT]},
    "float": {"anyOf": [{"type": "number"}, AMOUNT]},
    "str": {"type": "string"},
    "bool": {"type": "boolean"},
    "None": {"type": "null"},
    **dict.fromkeys(("Data", "Model", "Report"), NOUN),
    **{verb: {"$ref": f"#/definitions/{verb}"} for verb in registry.VERBS},
}


def of_type(node: ast.expr) -> dict[str, Any]:
    """The schema of a field's type as it is written in a method file; what it does not know allows anything."""
    if isinstance(node, ast.Name):
        return SIMPLE.get(node.id, {"type": "object"} if node.id in ("dict", "Mapping") else {})
    if isinstance(node, ast.Constant):
        return {"type": "null"} if node.value is None else {}
    if isinstance(node, ast.BinOp):
        sides = [of_type(node.left), of_type(node.right)]
        if {} in sides:
            return {}
        return {"anyOf": [one for side in sides for one in side.get("anyOf", [side])]}
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        kind, inside = node.value.id, node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if kind == "Literal":
            return {"enum": [ast.literal_eval(one) for one in inside]}
        if kind in ("list", "tuple"):
            several = [one for one in inside if not (isinstance(one, ast.Constant) and one.value is ...)]
            found = [of_type(one) for one in several]
            if kind == "tuple" and len(several) == len(inside):
                return {"type": "array", "items": found, "minItems": len(found), "maxItems": len(found)}
            array = {"type": "array", "items": found[0]}
            nested = found[0].get("$ref", "").startswith("#/definitions/")  # one method may stand without the list
            return {"anyOf": [array, found[0]]} if nested else array
        if kind in ("dict", "Mapping"):
            return {"type": "object", "additionalProperties": of_type(inside[-1])}
    return {}


def fields_of(entry: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Schemas of a method's fields, with their lines and defaults, and the names of those that must be given."""
    made, must = {}, []
    for name, field in entry["fields"].items():
        one = of_type(ast.parse(field["type"], mode="eval").body)
        one = {"allOf": [one]} if "$ref" in one else dict(one)  # beside a $ref nothing else is read
        one["description"] = f"{field['doc']} ({field['type']})"
        if field["default"] is None:
            must.append(name)
        else:
            try:
                value = ast.literal_eval(field["default"])
                one["default"] = json.loads(json.dumps(value))
            except (ValueError, TypeError):
                pass
        made[name] = one
    return made, must


def body(entry: dict[str, Any] | None, takes: Iterable[str], more: dict[str, Any], text: str) -> dict[str, Any]:
    """The schema of what stands behind a step's name."""
    made, must = fields_of(entry) if entry else ({}, [])
    wires = {wire: {**NOUN, "description": f"The {wire} it takes, by name: $name."} for wire in takes}
    made, must = {**wires, **made, **more}, [*wires, *must]
    shape = {"type": "object", "properties": made, "additionalProperties": False, "description": text}
    return {**shape, "required": must} if must else {**shape, "type": ["object", "null"]}


def nested(index: dict[str, Any], verb: str) -> dict[str, Any]:
    """The schema of a method given inside a step: its name, or its name with fields."""
    mine = {name: e for name, e in sorted(index.items()) if e["kind"] == verb}
    bare = sorted(name for name, e in mine.items() if all(f["default"] is not None for f in e["fields"].values()))
    full = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
        "properties": {name: body(e, (), {}, e["summary"]) for name, e in mine.items()},
    }
    return {"anyOf": [full, {"enum": bare}]} if bare else full


def schema(index: dict[str, Any]) -> dict[str, Any]:
    """JSON Schema (draft 7) of a recipe, for editors: what `trainlore validate` knows without reading the nouns."""
    gives = {"as": {"type": "string", "pattern": r"^[A-Za-z_]\w*$", "description": "The name of the result."}}
    types = {name: of_type(ast.parse(text, mode="eval").body) for name, text in recipe.TRAIN.items()}
    parts = {"type": "array", "items": {"$ref": "#/definitions/Part"}, "description": "Parts of the loop, inner first."}
    train = body(None, ("model", "data"), {**types, "with": parts, **gives}, "Train a model on data with these parts.")
    train["oneOf"] = [{"required": [one]} for one in recipe.BUDGETS]
    to = {"to": {"type": "string", "description": "A folder below the run folder (default: model)."}}
    steps: dict[str, Any] = {
        "train": train,
        "save": body(None, ("model",), {**to, **gives}, "Write the model as a Hugging Face directory."),
    }
    for name, e in sorted(index.items()):
        if e["kind"] != "Part":
            steps[name] = body(e, recipe.TAKES[e["kind"]], gives, e["summary"])
    worlds = [f"world:{name}/{part}" for name, there in sources.WORLDS.items() for part in there]
    source = {
        "anyOf": [
            {"type": "string", "description": "A file, a folder, a world or a preset.", "examples": worlds},
            {"enum": [*worlds, *sources.PRESETS]},
            {
                "type": "object",
                "required": ["data"],
                "properties": {k: {} for k in ("data", "rows", "sample", "errors")},
                "additionalProperties": False,
            },
            {
                "type": "object",
                "required": ["model"],
                "properties": {k: {} for k in ("model", "seed", "vocab", "window", "kind", "remote_code")},
            },
        ]
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A Trainlore recipe",
        "type": "object",
        "required": ["steps"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "default": "recipe"},
            "seed": {"type": "integer", "default": 0},
            "given": {
                "type": "object",
                "description": "Nouns from outside, by name: files, folders, worlds, presets.",
                "additionalProperties": source,
            },
            "steps": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "properties": steps,
                },
            },
        },
        "definitions": {verb: nested(index, verb) for verb in registry.VERBS},
    }


# ---- the site


def on_config(config: Any, **_: Any) -> Any:
    """Called by mkdocs: under `Methods` in the navigation, every page by its family."""
    index = json.loads(registry.INDEX.read_text())
    families: dict[str, list[dict[str, str]]] = {}
    for name, e in sorted(index.items(), key=lambda item: (item[1]["card"]["family"], item[0])):
        if (PAGES / f"{name}.md").exists():
            families.setdefault(e["card"]["family"], []).append({name: f"methods/{name}.md"})
    for section in config["nav"]:
        if "Methods" in section:
            section["Methods"] += [{family: pages} for family, pages in families.items()]
    return config


if __name__ == "__main__":
    raise SystemExit(main())
