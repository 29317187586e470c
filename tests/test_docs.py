"""What is written down is true: generated files are fresh, links lead somewhere, recipes validate, examples run."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from trainlore import recipe as recipes
from trainlore.errors import Bad
from trainlore.registry import index
from trainlore.slots import SLOTS
from trainlore.sources import PRESETS, TABLES, WORLDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
WRITTEN = [ROOT / n for n in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LOG.md", "examples/plugin/README.md")]
WRITTEN += sorted(p for p in DOCS.rglob("*.md") if p.parent.name != "methods")
PAGES = sorted((DOCS / "methods").glob("*.md"))


def blocks(path, *languages):
    """The fenced blocks of these languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(), re.M | re.S)
    return [text for language, text in found if language in languages]


def prose(path):
    """A page without its code: fenced, indented and inline."""
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S)
    return re.sub(r"`[^`\n]*`|^(?: {4}|\t).*$", "", text, flags=re.M)


def test_generated_files_are_fresh():
    done = subprocess.run([sys.executable, ROOT / "tools/generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, f"run `make generate`:\n{done.stdout}{done.stderr}"


# ---- links


def anchors(path):
    """The names of a page's headings, as the site makes them."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.M)
    plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", head)) for head in heads]
    return {re.sub(r"[-\s]+", "-", head).strip("-").lower() for head in plain}


@pytest.mark.parametrize("path", [*WRITTEN, *PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    text = prose(path)
    links = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|srcset|href)="([^"]+)"', text)
    for link in links:
        if link.startswith(("https://", "http://", "#only-")):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists() and ROOT in file.parents, f"{link} leads nowhere"
        if anchor and not anchor.startswith("only-"):
            assert anchor in anchors(file), f"{link}: {file.name} has no such heading"


def test_every_page_is_in_the_sites_navigation():
    def files(nav):
        for entry in nav:
            one = next(iter(entry.values())) if isinstance(entry, dict) else entry
            yield from files(one) if isinstance(one, list) else [one]

    there = set(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    have = {p.relative_to(DOCS).as_posix() for p in DOCS.rglob("*.md") if p not in PAGES} | {"methods/index.md"}
    assert there == have


# ---- recipes


def whole(text):
    raw = yaml.safe_load(text)
    return raw if isinstance(raw, dict) and "steps" in raw else None


RECIPES = [(p, r) for p in WRITTEN if p.parent.name != "plugin" for t in blocks(p, "yaml") if (r := whole(t))]


def test_there_are_recipes():
    assert len(RECIPES) >= 3


@pytest.mark.parametrize(("path", "raw"), RECIPES, ids=[f"{p.stem}-{r.get('name')}" for p, r in RECIPES])
def test_recipes_in_the_text_validate(path, raw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for source in raw.get("given", {}).values():
        if str(source).endswith(TABLES):
            (tmp_path / source).touch()
    assert len(recipes.read(raw).steps) == len(raw["steps"])


def test_the_overrides_in_the_text_are_taken():
    """Every --set of a `trainlore run` or `validate` line, on the first recipe of its page or the starter it names."""
    from trainlore.cli.shipped import recipe_path

    tried = 0
    for page in (DOCS / "recipes.md", DOCS / "cli.md"):
        for line in "\n".join(blocks(page, "console")).splitlines():
            words = line.partition("#")[0].split()
            sets = [words[i + 1] for i, w in enumerate(words) if w == "--set" and "given." not in words[i + 1]]
            if words[:1] != ["$"] or not sets or words[2] not in ("run", "validate"):
                continue
            raw = whole(blocks(page, "yaml")[0]) if words[3].endswith(".yaml") else str(recipe_path(words[3]))
            tried += 1
            try:
                recipes.read(raw, sets)
            except Bad as error:
                assert "did you mean epochs" in str(error), (line, error)
    assert tried >= 4


MODELS = {"model", "teacher", "prior", "reference", "expert_a", "expert_b", "proxies"}  # of the tiny worlds' nouns


@pytest.mark.parametrize("path", [p for p in PAGES if p.stem != "index"], ids=lambda p: p.stem)
def test_the_step_on_every_methods_page_validates(path):
    step = yaml.safe_load(blocks(path, "yaml")[-1])
    given = {name: "llama-1m" if name in MODELS else "world:digits" for name in recipes.refs(step)}
    assert len(recipes.read({"given": given, "steps": step}).steps) == len(step)


# ---- tables that repeat what the code says


def rows(path):
    return [
        [c.strip() for c in line.strip("| ").split(" | ")] for line in path.read_text().splitlines() if line[:2] == "| "
    ]


def test_the_table_of_slots_is_the_loops():
    table = {r[0].strip("`"): r[1] for r in rows(DOCS / "parts.md") if r[0].startswith("`")}
    assert table == SLOTS


def test_every_world_part_and_preset_is_told():
    told = re.findall(r"`([^`]+)`", (DOCS / "worlds.md").read_text())
    assert set(WORLDS) | {part for parts in WORLDS.values() for part in parts} | set(PRESETS) <= set(told)


def test_every_field_of_a_training_is_told():
    told = set(re.findall(r"`(\w+)`", (DOCS / "recipes.md").read_text()))
    assert set(recipes.TRAIN) <= told


def test_every_law_is_told():
    from trainlore import checks

    told = re.findall(r"^\| `(\w+)` \|", (DOCS / "laws.md").read_text(), re.M)
    laws = [law.__name__ for law in (*checks.EVERY, *checks.PARTS, *checks.STEPPED)]
    assert [name for name in told if name in laws] == laws


# ---- the command line


def commands():
    from typer.main import get_command

    from trainlore.cli import app

    return get_command(app).commands


def test_every_command_has_its_place():
    assert set(re.findall(r"^### (\w+)$", (DOCS / "cli.md").read_text(), re.M)) == set(commands())


@pytest.mark.parametrize("path", WRITTEN, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_commands_in_the_text_exist(path):
    known = commands()
    text = (
        "\n".join(blocks(path, "console", "")) + "\n" + "\n".join(re.findall(r"`(trainlore [^`]+)`", path.read_text()))
    )
    for line in re.findall(r"^(?:\$ )?(?:.*&& )?trainlore (.+)$", text, re.M):
        words = [w for w in line.partition("  #")[0].split() if w != "--traceback"]
        if words[0].isupper() or not words[0].islower():
            continue
        assert words[0] in known, f"trainlore {line}"
        options = {o for p in known[words[0]].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
        assert {w for w in words if w.startswith("--")} <= options, f"trainlore {line}"


# ---- examples


def test_the_method_in_the_readme_is_the_real_one():
    """Line by line, in order; `...` leaves something out."""
    shown = next(b for b in blocks(ROOT / "README.md", "python") if "@method" in b)
    name = re.search(r'name="(\w+)"', shown)[1]
    at = ROOT / "src" / (index()[name]["at"].partition(":")[0].replace(".", "/") + ".py")
    assert f"`{at.relative_to(ROOT).as_posix()}`" in (ROOT / "README.md").read_text()
    lines, skipping = iter(at.read_text().splitlines()), True
    for line in shown.rstrip().splitlines():
        if line.strip() == "...":
            skipping = True
            continue
        found = next((real for real in lines if real == line), None) if skipping else next(lines, None)
        assert found == line
        skipping = False


RUN = [
    (p, n, b)
    for p in (ROOT / "README.md", DOCS / "python.md")
    for n, b in enumerate(blocks(p, "python"))
    if "import" in b
]


@pytest.mark.parametrize(("path", "number", "code"), RUN, ids=[f"{p.stem}-{n}" for p, n, _ in RUN])
def test_examples_run(path, number, code, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    exec(compile(code, f"{path.name}, example {number}", "exec"), {"__name__": "example"})


def test_the_python_of_the_readme_and_its_recipe_agree(home):
    """The same training said twice: what is printed in the comment is what a run of the recipe gives."""
    from trainlore.execute import execute

    raw = whole(blocks(ROOT / "README.md", "yaml")[0])
    said = re.search(r"# Report\(accuracy advantage=(\S+) \(n=(\d+)\)\)", (ROOT / "README.md").read_text())
    found = execute(recipes.read(raw))["verdict"]["accuracy advantage"]
    assert abs(found.value - float(said[1])) < 0.04 and len(found.values) == int(
        said[2]
    )  # the last digits are a machine's
