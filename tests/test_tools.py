"""The tools: what `tools/new.py` writes keeps the laws, what `tools/generate.py` writes is what it says it is."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trainlore import registry

ROOT = Path(__file__).parents[1]
KINDS = ("part", "curate", "shape", "fit", "measure")


def tool(name):
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


new, generate = tool("new"), tool("generate")


# ---- new.py


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """One method of each kind, written into an empty tree."""
    root = tmp_path_factory.mktemp("begun")
    for kind in KINDS:
        given = [kind, "train/schedule", f"begun_{kind}", "--year", "2024", "--paper", "arXiv:2401.00001"]
        assert new.main([*given, "--root", str(root)]) == 0
    return root


@pytest.fixture
def known(begun, monkeypatch):
    """The registry as it will be once the new files are in the index."""
    import importlib

    package = importlib.import_module("trainlore.methods.train.schedule")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(begun / "src/trainlore/methods/train/schedule")])
    found = registry.scan(begun / "src" / "trainlore" / "methods", "trainlore.methods")
    both = {**registry.index(), **found}
    monkeypatch.setattr(registry, "index", lambda: both)
    return found


def test_it_writes_a_method_its_test_and_the_packages(begun):
    files = {p.relative_to(begun).as_posix() for p in begun.rglob("*.py")}
    folder = "src/trainlore/methods/train"
    wanted = {f"{folder}/schedule/begun_{k}.py" for k in KINDS} | {
        f"{folder}/__init__.py",
        f"{folder}/schedule/__init__.py",
    }
    assert files == wanted | {f"tests/methods/train/schedule/test_begun_{k}.py" for k in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_writes_keeps_every_law(known, kind):
    from trainlore.checks import check

    assert known[f"begun_{kind}"]["card"]["status"] == "draft"
    assert check(f"begun_{kind}") == []


@pytest.mark.parametrize("kind", KINDS)
def test_its_test_passes_and_its_claim_can_be_sabotaged(known, begun, kind):
    path = begun / f"tests/methods/train/schedule/test_begun_{kind}.py"
    spec = importlib.util.spec_from_file_location(f"begun_test_{kind}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.test_the_formula_against_a_loop()
    module.test_a_bad_field_is_named()
    assert module.CLAIM.method == f"begun_{kind}"
    assert not any(module.CLAIM.run(1, sabotaged=True).differences)
    assert module.CLAIM.run(1).method > 0.5  # the arms run


def test_what_it_writes_passes_the_linter(begun):
    pytest.importorskip("ruff")
    ruff, settings = [sys.executable, "-m", "ruff"], ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    ours = ["--config", 'lint.isort.known-first-party=["trainlore"]']
    for command in (["format", "--check", *settings], ["check", *settings, *ours]):
        done = subprocess.run([*ruff, *command, str(begun)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["part", "train/schedule", "begun_part", "--year", "2024"], "exists: nothing is overwritten"),
        (["part", "train/schedule", "wsd", "--year", "2024"], "there is a method 'wsd' already"),
        (["part", "train/schedule", "MyMethod", "--year", "2024"], "snake case"),
        (["part", "schedule", "another", "--year", "2024"], "not a family"),
        (["part", "train/schedule", "another", "--year", "2024", "--paper", "2401.00001"], "not a paper"),
    ],
)
def test_it_refuses_with_a_reason(begun, capsys, given, says):
    before = {p: p.read_bytes() for p in begun.rglob("*.py")}
    assert new.main([*given, "--root", str(begun)]) == 2
    assert says in capsys.readouterr().err
    assert {p: p.read_bytes() for p in begun.rglob("*.py")} == before


# ---- generate.py


def test_the_newest_result_of_a_method_counts(tmp_path):
    def written(path, *rows):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("".join(json.dumps(r) + "\n" for r in rows))

    old, same = {"method": "sam", "date": "2026-01-02", "n": 1}, {"method": "sam", "date": "2026-01-02", "n": 2}
    written("digits/sam.jsonl", {"method": "sam", "date": "2025-12-31", "n": 0}, old, same)
    written("text/sam.jsonl", {"method": "sam", "date": "2026-01-01", "n": 3})
    written("text/gone.jsonl", {"method": "gone", "n": 4})
    files = list(tmp_path.glob("*/*.jsonl"))
    assert generate.newest(files, {"sam": {}}) == {"sam": same}
    assert generate.newest(reversed(files), {"sam": {}}) == {"sam": same}
    (tmp_path / "text" / "sam.jsonl").write_text('{"method": "sa')
    with pytest.raises(ValueError, match=r"sam.jsonl, line 1"):
        generate.newest(files, {"sam": {}})


def test_a_half_written_file_is_waited_for_and_named(monkeypatch):
    tries = []

    def half():
        tries.append(1)
        if len(tries) < 3:
            raise SyntaxError("invalid syntax")
        return {}

    monkeypatch.setattr(generate, "PAUSE", 0.0)
    monkeypatch.setattr(generate, "outputs", half)
    assert generate.settled() == {} and len(tries) == 3
    tries[:] = [0] * -100
    monkeypatch.setattr(generate, "TRIES", 2)
    monkeypatch.setattr(generate, "broken", lambda: [generate.METHODS / "half.py"])
    with pytest.raises(SystemExit, match=r"SyntaxError: invalid syntax\n  src/trainlore/methods/half.py"):
        generate.settled()


def test_stale_files_are_named_written_and_removed(monkeypatch, tmp_path, capsys):
    pages = tmp_path / "docs" / "methods"
    pages.mkdir(parents=True)
    (pages / "gone.md").write_text("x")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", pages)
    monkeypatch.setattr(generate, "outputs", lambda: {pages / "sam.md": "new\n"})
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1 and (pages / "gone.md").exists() and not (pages / "sam.md").exists()
    assert capsys.readouterr().out.split() == ["stale:", "docs/methods/sam.md", "stale:", "docs/methods/gone.md"]
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0 and [p.name for p in pages.iterdir()] == ["sam.md"]
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 0


def test_it_loads_no_torch():
    code = "import sys, runpy; sys.argv = ['g', '--check']\ntry: runpy.run_path('tools/generate.py', run_name='__main__')\nexcept SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.split()[-1] == "False", done.stderr


# ---- the schema that editors read


def fits(value, schema, root):
    """Whether the value is what the schema says: as much of JSON Schema as ours uses."""
    if "$ref" in schema:
        return fits(value, root["definitions"][schema["$ref"].rpartition("/")[2]], root)
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "null": type(None),
        "integer": int,
        "number": (int, float),
    }
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and not any(
        isinstance(value, kinds[k]) and (k == "boolean" or not isinstance(value, bool)) for k in wanted
    ):
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        return False
    if isinstance(value, dict):
        known, rest = schema.get("properties", {}), schema.get("additionalProperties", True)
        if not set(schema.get("required", ())) <= set(value):
            return False
        if not schema.get("minProperties", 0) <= len(value) <= schema.get("maxProperties", len(value)):
            return False
        for k, v in value.items():
            if k not in known and (rest is False or (isinstance(rest, dict) and not fits(v, rest, root))):
                return False
            if k in known and not fits(v, known[k], root):
                return False
    if isinstance(value, list):
        inside = schema.get("items", {})
        pairs = zip(value, inside, strict=False) if isinstance(inside, list) else ((v, inside) for v in value)
        if not all(fits(v, s, root) for v, s in pairs) or len(value) < schema.get("minItems", 0):
            return False
        if len(value) > schema.get("maxItems", len(value)):
            return False
    some = [sum(fits(value, s, root) for s in schema[k]) for k in ("anyOf", "oneOf") if k in schema]
    return (
        all(some)
        and (schema.get("oneOf") is None or some[-1] == 1)
        and all(fits(value, s, root) for s in schema.get("allOf", ()))
    )


@pytest.fixture(scope="module")
def schema():
    return generate.schema(registry.index())


@pytest.mark.parametrize("path", sorted((ROOT / "src/trainlore/recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_schema_takes_every_starter(schema, path):
    raw = yaml.safe_load(path.read_text())
    for step in raw["steps"]:
        assert fits(step, schema["properties"]["steps"]["items"], schema), step
    assert fits(raw, schema, schema)


@pytest.mark.parametrize(
    "step",
    [
        {"dsri": {"data": "$pool", "target": "$target"}},
        {"dsir": {"data": "$pool"}},
        {"dsir": {"data": "pool", "target": "$target"}},
        {"dsir": {"data": "$pool", "target": "$target", "kep": 0.1}},
        {"dsir": {"data": "$pool", "target": "$target", "keep": "much"}},
        {"wsd": {"decay": 0.1}},
        {"train": {"model": "$m", "data": "$d"}},
        {"train": {"model": "$m", "data": "$d", "steps": 1, "epochs": 1}},
        {"train": {"model": "$m", "data": "$d", "steps": 1, "with": [{"dsir": {}}]}},
        {"train": {"model": "$m", "data": "$d", "steps": 1, "with": ["kd"]}},
    ],
    ids=lambda step: json.dumps(step)[:60],
)
def test_the_schema_refuses_what_a_recipe_refuses(schema, step):
    from trainlore import recipe

    steps = schema["properties"]["steps"]["items"]
    right = {"dsir": {"data": "$pool", "target": "$target", "keep": "0.1"}}
    parts = {
        "train": {
            "model": "$m",
            "data": "$d",
            "tokens": "2M",
            "with": ["wsd", {"clip": None}, {"kd": {"teacher": "$m"}}],
        }
    }
    given = dict.fromkeys(("pool", "target", "d"), "world:two-domains") | {"m": "llama-1m"}
    for one in (right, parts):
        assert fits(one, steps, schema) and recipe.read({"given": given, "steps": [one]})
    assert not fits(step, steps, schema)
    with pytest.raises(ValueError):
        recipe.read({"given": given, "steps": [step]})


# ---- the hooks before a commit


def test_the_hooks_are_make_lint():
    """Every command of `make lint` is a hook and every hook such a command; only the formatter writes where make checks."""
    make = (ROOT / "Makefile").read_text()
    target = re.search(r"^lint:.*\n((?:\t.*\n)+)", make, re.M)[1]
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in target.splitlines()]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [r["repo"] for r in hooks] == ["local"]
    entries = [h["entry"] for h in hooks[0]["hooks"]]
    assert entries == [c.replace("format --check", "format") for c in commands]
