"""The command line: what every command prints, writes and refuses, and that a run outlives Ctrl-C, kill -9 and a full disk."""

import ast
import errno
import json
import os
import signal
import subprocess
import sys
import time
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import torch
import yaml

from trainlore import cli, store
from trainlore.cli.shipped import recipe_path
from trainlore.nouns import Model

COMMANDS = [c.name or c.callback.__name__ for c in cli.app.registered_commands]
WORDS = ["kamu", "gale", "nera", "bidu", "tovi", "pese"]
SRC = Path(__file__).parents[2] / "src"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cli")
        patch.setenv("TRAINLORE_HOME", str(folder / "home"))
        yield folder


@pytest.fixture
def tl(home, capsys, monkeypatch):
    """Run a command in this process, in a folder of its own: gives exit code, stdout and stderr."""
    monkeypatch.chdir(home)

    def run(*args):
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["trainlore", *map(str, args)])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out, err

    return run


def refused(answer, *says):
    code, _, err = answer
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1, answer
    assert all(s in err for s in says), err


# ---- looking things up


def test_looking_things_up_loads_no_torch(home):
    asked = [
        ["ls"],
        ["ls", "--json"],
        ["validate", "first_life"],
        ["search", "labels"],
        ["papers"],
        ["show", "dsir"],
        ["cp"],
        ["--help"],
        ["run", "--help"],
    ]
    code = (
        "import sys, json, io, contextlib\nfrom trainlore.cli import main\n"
        f"for args in json.loads({json.dumps(json.dumps(asked))}):\n"
        "    sys.argv = ['trainlore', *args]\n"
        "    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main()\n"
        "    heavy = {'torch', 'transformers', 'pyarrow', 'numpy', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, (args, heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def imported(path):
    """The modules of ours that this file imports when it is itself imported."""
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trainlore":
            for name in node.names:
                inner = SRC / node.module.replace(".", "/") / name.name
                there = inner.is_dir() or inner.with_suffix(".py").exists()
                yield f"{node.module}.{name.name}" if there else node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.partition(".")[0] == "trainlore")
        elif isinstance(node, ast.Try | ast.With | ast.ClassDef) or (
            isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING"
        ):
            todo += ast.iter_child_nodes(node)


def test_imports_flow_one_way_and_nothing_needs_the_command_line():
    flow = {}
    for path in sorted((SRC / "trainlore").rglob("*.py")):
        at = path.relative_to(SRC).with_suffix("")
        flow[".".join(at.parent.parts if at.name == "__init__" else at.parts)] = set(imported(path))
    TopologicalSorter(flow).prepare()  # raises CycleError with the files of a circle
    cli = {name for name, needs in flow.items() if any(n.startswith("trainlore.cli") for n in needs)}
    assert {name for name in cli if not name.startswith("trainlore.cli")} == {"trainlore.__main__"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_of_every_command(tl, command):
    code, out, _ = tl(*command.split(), "--help")
    assert code == 0 and "Usage:" in out and (not command or f"trainlore {command}" in out)
    if not command:
        assert all(c in out for c in COMMANDS)


def test_version_and_mistyped_commands(tl):
    from trainlore import __version__

    assert tl("--version")[:2] == (0, __version__ + "\n")
    refused(tl("rum"), "No such command 'rum'")
    refused(tl("ls", "--familly", "data"), "No such option: --familly")
    refused(tl("show"), "Missing argument")
    refused(tl("run", "--out"), "requires an argument")
    refused(tl("search", "labels", "--top", "0"), "--top", "1")
    assert tl()[0] == 2


def test_ls(tl):
    from trainlore.registry import index

    code, out, _ = tl("ls")
    assert code == 0 and all(f" {name} " in out for name in index()) and f"\n{len(index())} methods" in out
    assert all(e["summary"] in out for e in index().values())  # a line stays whole where nobody looks at it
    rows = json.loads(tl("ls", "--json")[1])
    assert {r["name"] for r in rows} == set(index()) and set(rows[0]) >= {
        "name",
        "family",
        "kind",
        "slots",
        "verdict",
        "summary",
        "year",
    }

    def names(*args):
        return {r["name"] for r in json.loads(tl("ls", "--json", *args)[1])}

    assert names("--family", "data/select") < names("--family", "data") < set(index())
    assert names("--kind", "part") == {n for n, e in index().items() if e["kind"] == "Part"}
    assert names("--slot", "rate") == {n for n, e in index().items() if e["kind"] == "Part" and "rate" in e["slots"]}
    assert names("--verdict", "untried") | names("--verdict", "reproduced") <= set(index())
    refused(tl("ls", "--family", "data/slect"), "no family 'data/slect'; did you mean data/select")
    refused(tl("ls", "--kind", "widget"), "kinds are Curate, Shape, Fit, Measure, Part")
    refused(tl("ls", "--slot", "rat"), "no slot 'rat'; did you mean rate")
    refused(tl("ls", "--verdict", "maybe"), "verdicts are reproduced")


def test_show(tl):
    code, out, _ = tl("show", "dsir")
    assert code == 0 and out.startswith("# ") and "| `keep` |" in out and "## Here" in out
    assert json.loads(tl("show", "dsir", "--json")[1])["fields"]["target"]["type"] == "Data"
    assert "$ trainlore do dsir --data ROWS.jsonl --set target=MORE.jsonl --out KEPT.jsonl" in out
    assert "trainlore do accuracy --data ROWS.jsonl --model MODEL" in tl("show", "accuracy")[1].replace(
        "--model MODEL --data ROWS.jsonl", "--data ROWS.jsonl --model MODEL"
    )
    assert "trainlore do" not in tl("show", "clip")[1] and "\n\n\n" not in out
    refused(tl("show", "dsirr"), "no method 'dsirr'; did you mean dsir?")


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ("which labels are wrong", "aum"),
        ("remove near duplicate documents", "near_duplicates"),
        ("pack documents into sequences", "best_fit_packing"),
        ("flat minima", "sam"),
        ("prefer chosen to rejected answers", "dpo"),
        ("low-rank adaptation", "lora"),
        ("round weights to a few bits", "nearest"),
    ],
)
def test_search_has_the_right_answer_first(tl, question, first):
    found = json.loads(tl("search", question, "--json")[1])
    assert found[0]["name"] == first and found[0]["what"] == "method" and len(found) <= 10
    assert found == sorted(found, key=lambda f: -f["score"])


def test_search_prints_and_refuses(tl):
    code, out, _ = tl("search", "labels", "--top", "3")
    assert code == 0 and len(out.splitlines()) == 3
    refused(tl("search", "zzzz qqqq"), "nothing fits 'zzzz qqqq'")
    assert json.loads(tl("search", "zzzz", "--json")[1]) == []


def test_papers(tl):
    rows = json.loads(tl("papers", "--json")[1])
    assert len(rows) == 575 == len({r["id"] for r in rows})
    for r in rows:
        assert list(r) == ["id", "title", "family", "kind", "methods", "reason"]
        assert bool(r["methods"]) != bool(r["reason"]) and isinstance(r["methods"], list)
    some = json.loads(tl("papers", "--json", "--family", "compress", "--missing")[1])
    assert some and all(r["family"].startswith("compress") and not r["methods"] for r in some)
    code, out, _ = tl("papers", "--family", "compress")
    assert code == 0 and "papers, " in out
    refused(tl("papers", "--family", "cmpress"), "did you mean compress")


def test_cp(tl, home):
    (home / "copies").mkdir()
    code, out, _ = tl("cp", "first_life", "copies")
    assert code == 0 and "trainlore run copies/first_life.yaml" in out
    assert (home / "copies" / "first_life.yaml").read_text() == recipe_path(None).read_text()
    refused(tl("cp", "first_life", "copies"), "copies/first_life.yaml exists: say --force")
    assert tl("cp", "first_life", "copies", "--force")[0] == tl("cp", "first_life", "copies/mine.yaml")[0] == 0
    refused(tl("cp", "first_live"), "did you mean first_life")
    refused(tl("cp", "first_life", "nowhere/x.yaml"), "there is no folder nowhere")
    assert "first_life" in tl("cp")[1]


def test_validate(tl, home):
    assert "no errors" in tl("validate", "first_life")[1]
    (home / "wrong.yaml").write_text(
        yaml.safe_dump({"given": {"p": "world:digits"}, "steps": [{"dsirr": {"data": "$p"}}, {"ema": {}}]})
    )
    code, _, err = tl("validate", "wrong.yaml")
    assert code == 2 and "2 errors" in err and "did you mean dsir" in err and "ema is a part" in err
    refused(tl("validate", "first_live"), "no recipe 'first_live'; did you mean first_life")
    refused(tl("validate", "nowhere/first_life.yaml"), "no recipe nowhere/first_life.yaml")
    assert "steps, no errors" in tl("validate", "first_life", "--set", "seed=3")[1]
    refused(tl("validate", "first_life", "--set", "sed=3"), "cannot set 'sed=3'")


def test_env_and_check(tl):
    found = json.loads(tl("env", "--json")[1])
    assert found["torch"] == torch.__version__ and {"trainlore", "python", "device", "cores", "commit", "cache"} <= set(
        found
    )
    assert "torch" in tl("env")[1]
    code, out, _ = tl("check", "random_rows")
    assert code == 0 and "random_rows keeps all" in out
    refused(tl("check", "random_row"), "did you mean random_rows")


# ---- one step on files


@pytest.fixture(scope="module")
def tables(home):
    pool = [
        {
            "text": " ".join(WORDS[(i + j) % (3 if i % 2 else 6)] for j in range(8)) + (" [/dim]" if i == 4 else ""),
            "n": i,
        }
        for i in range(30)
    ]
    (home / "pool.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pool))
    (home / "dev.jsonl").write_text("".join(json.dumps({"text": " ".join(WORDS[:3])}) + "\n" for _ in range(9)))
    return pool


DSIR = (
    "do",
    "dsir",
    "--data",
    "pool.jsonl",
    "--set",
    "target=dev.jsonl",
    "--set",
    "min_words=0",
    "--set",
    "noise=false",
)


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_do_writes_what_it_kept_and_what_it_dropped(tl, home, tables, form):
    from trainlore.nouns import Data

    code, out, _ = tl(*DSIR, "--set", "keep=0.2", "--out", f"new/kept.{form}")
    assert code == 0 and out == f"6 rows of 30 → new/kept.{form}\n"
    kept, lost = (Data.of(home / "new" / f"{name}.{form}") for name in ("kept", "kept.dropped"))
    assert len(kept) == 6 and sorted([*kept["n"], *lost["n"]]) == list(range(30))
    assert set(zip(kept["n"].tolist(), kept.text(), strict=True)) <= {(r["n"], r["text"]) for r in tables}
    assert min(kept["dsir"]) >= max(lost["dsir"]) and not list((home / "new").glob(".*"))
    before = (home / "new" / f"kept.{form}").read_bytes()
    refused(tl(*DSIR, "--set", "keep=0.2", "--out", f"new/kept.{form}"), f"new/kept.{form} exists: say --force")
    assert tl(*DSIR, "--set", "keep=0.2", "--seed", 1, "--out", f"new/kept.{form}", "--force")[0] == 0
    assert len(before) and (home / "new" / f"kept.{form}").exists()
    (home / "new" / f"kept.{form}").unlink()
    refused(tl(*DSIR, "--set", "keep=0.2", "--out", f"new/kept.{form}"), f"kept.dropped.{form} exists")
    assert tl(*DSIR, "--set", "keep=1.0", "--out", f"new/kept.{form}", "--force")[0] == 0
    assert not (home / "new" / f"kept.dropped.{form}").exists()  # nothing was dropped this time


def test_do_takes_its_data_without_saying_data(tl, home, tables):
    code, out, _ = tl("do", "dsir", "pool.jsonl", *DSIR[4:], "--set", "keep=0.2")
    assert code == 0 and out == "6 rows of 30\n"


def test_do_leaves_a_word_a_word_where_a_field_takes_either(tl, home):
    fields = ("pool=world:digits/spare", "oracle=truth", "acquire=uncertainty", "count=3", "rounds=1", "steps=2")
    sets = [part for f in fields for part in ("--set", f)]
    code, out, err = tl("do", "active_learning", "--model", "mlp", "--data", "world:digits/train", *sets)
    assert code == 0 and "weights" in out, err


def test_do_measures_and_shapes(tl, home):
    code, out, _ = tl("do", "accuracy", "--data", "world:digits/test", "--model", "mlp", "--out", "acc.json")
    (metric,) = json.loads((home / "acc.json").read_text())
    assert (
        code == 0 and metric["metric"] == "accuracy" and metric["n"] == 400 and f"accuracy {metric['value']:.5g}" in out
    )
    assert "vit-digits" not in tl("do", "magnitude", "--model", "vit-digits", "--set", "keep=0.5", "--out", "pruned")[1]
    pruned = Model.of(home / "pruned")
    assert any((p == 0).float().mean() > 0.4 for p in pruned.net.parameters() if p.dim() == 2)
    code, out, _ = tl("do", "el2n", "--data", "world:digits/train", "--set", "proxies=[mlp, mlp]", "--set", "keep=0.5")
    assert code == 0 and "rows of" in out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["do", "dsir", "pool.jsonl", "--data", "pool.jsonl"], "give the data once"),
        (["do", "dsirr", "--data", "pool.jsonl"], "no method 'dsirr'; did you mean dsir"),
        (["do", "ema", "--data", "pool.jsonl"], "ema is a part of a training loop"),
        (["do", "dsir"], "dsir needs --data"),
        (["do", "accuracy", "--data", "pool.jsonl"], "accuracy needs --model"),
        (["do", "dsir", "--data", "pool.jsonl"], "dsir needs --set target=... (Data)"),
        ([*DSIR, "--set", "keeep=0.1"], "dsir has no field 'keeep'; did you mean keep?"),
        ([*DSIR, "--set", "keep"], "say --set keep=VALUE"),
        ([*DSIR, "--set", "keep=lots"], "keep: Expected `float"),
        ([*DSIR, "--set", "keep=[1"], "not YAML"),
        ([*DSIR, "--set", "keep=2"], "keep"),
        ([*DSIR, "--set", "keep=0.1", "--out", "x.txt"], "rows are written as .jsonl, .csv, .parquet"),
        ([*DSIR, "--set", "keep=0.1", "--out", "folder.jsonl"], "folder.jsonl is a folder"),
        (["do", "dsir", "--data", "pool.jsonl", "--set", "target=nope.jsonl", "--set", "keep=0.1"], "no file nope.jsonl"),
        (["do", "dsir", "--data", "nope.jsonl", "--set", "target=dev.jsonl", "--set", "keep=0.1"], "no file nope.jsonl"),
        (["do", "dsir", "--data", "world:nope", "--set", "target=dev.jsonl", "--set", "keep=0.1"], "no world 'nope'; worlds are"),
        (["do", "accuracy", "--data", "world:digits/test", "--model", "lama-1m"], "did you mean llama-1m"),
        (["do", "accuracy", "--data", "world:digits/test", "--model", "mlp", "--out", "x.txt"], "a report is written as .json"),
        (["do", "accuracy", "--data", "pool.jsonl", "--model", "mlp"], "accuracy needs column 'label'; there are text, n"),
        (["do", "perplexity", "--data", "pool.jsonl", "--model", "llama-1m"], "has no tokenizer"),
        (["do", "magnitude", "--model", "mlp", "--set", "keep=0.5", "--out", "m"], "is not a Hugging Face model"),
    ],
)  # fmt: skip
def test_do_says_what_is_wrong_and_writes_nothing(tl, home, tables, args, says):
    for name in ("folder.jsonl", "home"):  # what is read is cached in the second
        (home / name).mkdir(exist_ok=True)
    before = sorted(home.iterdir())
    refused(tl(*args), says)
    assert sorted(home.iterdir()) == before


def test_faults_that_are_not_the_user_s_say_so(tl, home, tables, monkeypatch):
    from trainlore import single

    def broken(*args):
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(single, "do", broken)
    code, _, err = tl(*DSIR, "--set", "keep=0.1")
    assert code == 1 and "ZeroDivisionError: of ours" in err and "--traceback" in err
    monkeypatch.setattr(sys, "argv", ["trainlore", "--traceback", *DSIR])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_a_full_disk_while_rows_are_written(tl, home, tables, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    refused(tl(*DSIR, "--set", "keep=0.1", "--out", "full.jsonl"), "the disk is full: full.jsonl could not be written")
    monkeypatch.setattr(store, "write", full)
    refused(
        tl("do", "accuracy", "--data", "world:digits/test", "--model", "mlp", "--out", "full.json"), "the disk is full"
    )
    assert not list(home.glob("*full*"))


# ---- a run


RECIPE = {
    "name": "small [text] ../x",
    "seed": 1,
    "given": {
        "pool": {"data": "world:two-domains/pool", "sample": 60},
        "target": {"data": "world:two-domains/target", "rows": 40},
        "net": {"model": "llama-1m", "window": 128, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    },
    "steps": [
        {"dsir": {"data": "$pool", "target": "$target", "keep": 0.5, "min_words": 0, "as": "chosen"}},
        {"bpe": {"model": "$net", "corpus": "$chosen", "vocab": 300, "as": "blank"}},
        {"best_fit_packing": {"data": "$chosen", "model": "$blank", "length": 128, "as": "packed"}},
        {"train": {"model": "$blank", "data": "$packed", "steps": 6, "batch_size": 4, "precision": "fp32", "with": [{"wsd": {"decay": 0.5}}], "as": "small"}},
        {"perplexity": {"model": "$small", "data": "$target", "as": "exam"}},
        {"save": {"model": "$small", "to": "model", "as": "saved"}},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def lived(home):
    (home / "small.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(sys, "argv", ["trainlore", "run", "small.yaml", "--out", "runs/a", "-q"])
        cli.main()
    return home / "runs" / "a"


def test_run_leaves_everything_in_its_folder(tl, lived):
    record = json.loads((lived / "run.json").read_text())
    assert record["state"] == "finished" and [s["name"] for s in record["steps"]] == [
        next(iter(s)) for s in RECIPE["steps"]
    ]
    assert {p.name for p in lived.iterdir()} == {
        "run.json",
        "recipe.yaml",
        "metrics.jsonl",
        "outcomes",
        "report.html",
        "model",
    }
    code, out, _ = tl("run", "small.yaml", "--out", "runs/again", "-q")
    assert (
        code == 0
        and "30 rows of 60" in out
        and "from an earlier run" in out
        and "report: runs/again/report.html\n" in out
    )
    assert json.loads((lived.parent / "again" / "run.json").read_text())["meter"]["work"] == record["meter"]["work"]


def test_run_refuses_a_folder_that_is_there(tl, lived):
    code, out, err = tl("run", "small.yaml", "--out", "runs/a")
    assert code == 2 and "exists: choose another --out" in err and "failed" not in out
    assert tl("resume", "runs/a", "-q")[0] == 0
    refused(tl("resume", "nope"), "nope is not a run")
    refused(tl("run", "small.yaml", "--set", "steps.1.keep=2", "--set", "nope=1"), "cannot set 'nope=1'")


def test_run_names_its_folder_by_the_recipe_and_nowhere_else(tl, home, lived):
    before = {p for p in home.rglob("*") if "runs" not in p.parts}
    code, out, _ = tl("run", "small.yaml", "-q")
    made = [p for p in (home / "runs").iterdir() if p.name.startswith("small-text-x-")]
    assert code == 0 and len(made) == 1 and f"runs/{made[0].name}/report.html" in out
    assert {p for p in home.rglob("*") if "runs" not in p.parts} == before


def test_a_failing_step_keeps_what_was_finished(tl, home, lived):
    raw = {**RECIPE, "steps": [*RECIPE["steps"][:1], {"random_rows": {"data": "$chosen", "keep": 7.0, "as": "x"}}]}
    (home / "failing.yaml").write_text(yaml.safe_dump(raw))
    code, out, err = tl("run", "failing.yaml", "--out", "runs/failing")
    assert code == 2 and "failed; what was finished is kept: trainlore resume runs/failing" in out and "keep" in err
    record = json.loads((home / "runs" / "failing" / "run.json").read_text())
    assert record["state"] == "failed" and len(record["steps"]) == 1 and "keep" in record["error"]
    refused(tl("run", "small.yaml", "--out", "runs/never", "--set", "given.pool=nope.jsonl"), "no file nope.jsonl")
    (home / "broken.jsonl").write_text("{")
    refused(
        tl("run", "small.yaml", "--out", "runs/never", "--set", "given.pool=broken.jsonl"), "broken.jsonl:1: not JSON"
    )
    assert not (home / "runs" / "never").exists()


def test_prepare_shows_what_a_model_would_see(tl, home, lived):
    code, out, _ = tl("prepare", "small.yaml", "--debug", "--rows", "2", "--out", "prep")
    assert code == 0 and "dsir: 60 rows → 30" in out and "best_fit_packing: 30 rows →" in out
    record = json.loads((lived / "run.json").read_text())
    kept = [line for line in out.splitlines() if line.startswith("  kept")]
    lost = [line for line in out.splitlines() if line.startswith("  dropped")]
    assert len(kept) == len(lost) == 2 and all(" dsir -" in line for line in kept + lost)
    from trainlore import trail

    for line in kept + lost:
        (story, *_) = trail.row(lived, int(line.split()[1]), "pool")
        assert story["what"] == line.split()[0] and f"dsir {story['scores']['dsir']:.4g}" in line
    tokens = next(line for line in out.splitlines() if line.startswith("row 0: "))
    assert tokens.count("│") >= 1 and "<|end|>│" in tokens and "│<|pad|>" not in tokens
    assert record["state"] == "finished" and tl("prepare", "small.yaml", "--out", "prep")[0] == 0
    refused(tl("prepare", "small.yaml", "--out", "runs/a"), "is a run, and preparing would replace it")
    assert (lived / "model").exists()
    (home / "none.yaml").write_text(yaml.safe_dump({**RECIPE, "steps": RECIPE["steps"][:1]}))
    code, out, _ = tl("prepare", "none.yaml", "--debug", "--out", "prep2")
    assert code == 0 and "dsir: 60 rows → 30" in out and "cut at" in out and "tokens" not in out
    (home / "part.yaml").write_text(
        yaml.safe_dump({**RECIPE, "steps": [RECIPE["steps"][0], {"random_rows": {"data": "$chosen", "keep": 7.0}}]})
    )
    code, out, err = tl("prepare", "part.yaml", "--out", "prep3")
    assert code == 2 and "keep=7.0" in err and "dsir: 60 rows → 30" in out  # what went before is told all the same
    (home / "none.yaml").write_text(yaml.safe_dump({**RECIPE, "steps": RECIPE["steps"][5:], "given": {"small": "mlp"}}))
    refused(tl("prepare", "none.yaml"), "no training to prepare data for")


def test_prepare_shows_classes_pairs_and_what_has_no_tokens(tl, home, tables):
    given = {"d": {"data": "world:digits", "rows": 20}, "net": "mlp"}
    (home / "d.yaml").write_text(
        yaml.safe_dump({"given": given, "steps": [{"train": {"model": "$net", "data": "$d", "steps": 1}}]})
    )
    code, out, _ = tl("prepare", "d.yaml", "--debug")
    assert code == 0 and "features  (3, 64)  float32" in out and "labels  (3,)  int64" in out
    given = {"p": {"data": "world:two-domains/pairs", "rows": 20}, "c": "pool.jsonl", "net": RECIPE["given"]["net"]}
    steps = [
        {"bpe": {"model": "$net", "corpus": "$c", "vocab": 280, "as": "m"}},
        {"train": {"model": "$m", "data": "$p", "steps": 1, "truncate": True, "with": [{"dpo": {}}]}},
    ]
    (home / "p.yaml").write_text(yaml.safe_dump({"given": given, "steps": steps}))
    code, out, _ = tl("prepare", "p.yaml", "--debug", "--rows", "1")
    assert code == 0 and "row 0: " in out


def test_trails(tl, lived):
    from trainlore import trail

    kept = int(trail.curations(lived)[0]["out"].ids[0])
    code, out, _ = tl("trail", "runs/a", "--row", kept)
    assert code == 0 and "1 dsir → $chosen" in out and "kept  dsir -" in out and "made into 1 row" in out
    assert "(cut at -" in out and "in the rows trained on" in out and out.count("     '") == 1  # a text is told once
    assert json.loads(tl("trail", "runs/a", "--row", kept, "--json")[1])[0]["scores"]["dsir"] < 0
    code, out, _ = tl("trail", "runs/a", "--model", "")
    assert (
        code == 0
        and [line.split()[1] for line in out.splitlines()] == ["bpe", "train", "save"]
        and "data $packed" in out
    )
    assert json.loads(tl("trail", "runs/a", "--model", "$small", "--json")[1])[-1]["as"] == "small"
    refused(tl("trail", "runs/a"), "say --row ID or --model NAME")
    refused(tl("trail", "runs/a", "--row", "1", "--model", "small"), "say --row ID or --model NAME")
    refused(tl("trail", "runs/a", "--row", "99999"), "$pool has no row 99999")
    refused(tl("trail", "runs/a", "--model", "smal"), "no model $smal; there are $blank, $small, $saved")
    refused(tl("trail", "prep-nope", "--row", "1"), "is not a run")


def test_rows_with_square_brackets_are_told_as_they_are(tl, home, tables):
    steps = [{"random_rows": {"data": "$pool", "keep": 0.5, "as": "half"}}]
    (home / "b.yaml").write_text(yaml.safe_dump({"given": {"pool": "pool.jsonl"}, "steps": steps}))
    assert tl("run", "b.yaml", "--out", "runs/[b]", "-q")[0] == 0
    code, out, _ = tl("trail", "runs/[b]", "--row", "4")
    assert code == 0 and tables[4]["text"] in out and "[/dim]" in out
    assert tl("report", "runs/[b]")[1] == "runs/[b]/report.html\n"


def test_report_is_written_anew(tl, lived):
    (lived / "report.html").unlink()
    assert tl("report", "runs/a")[:2] == (0, "runs/a/report.html\n") and (lived / "report.html").exists()
    refused(tl("report", "nope"), "is not a run")


def test_export_gives_what_the_run_made(tl, home, lived):
    from transformers import AutoModelForCausalLM

    code, out, _ = tl("export", "runs/a", "--to", "out/saved")
    assert code == 0 and "relative distance of the logits 0.0e+00" in out
    assert (
        tl("export", "runs/a", "--to", "small", "--model", "small")[0] == tl("export", "small", "--to", "twice")[0] == 0
    )
    want = Model.of(lived / "model").fingerprint
    assert {Model.of(home / p).fingerprint for p in ("out/saved", "small", "twice")} == {want}
    assert AutoModelForCausalLM.from_pretrained(home / "small").config.vocab_size == 300
    assert (
        tl("export", "runs/a", "--to", "blank", "--model", "$blank")[0] == 0
        and Model.of(home / "blank").fingerprint != want
    )
    refused(tl("export", "runs/a", "--to", "small"), "small exists: say --force")
    (home / "mine").mkdir()
    (home / "mine" / "thesis.tex").write_text("x")
    refused(tl("export", "runs/a", "--to", "mine", "--force"), "is no model saved by trainlore")
    assert (home / "mine" / "thesis.tex").exists()
    refused(tl("export", "nope", "--to", "x"), "no folder nope")
    refused(tl("export", "runs/a", "--to", "x", "--model", "nope"), "no model $nope; there are")
    code, _, _ = tl("do", "magnitude", "--model", "vit-digits", "--set", "keep=0.5", "--out", "vit")
    assert code == 0 and tl("export", "vit", "--to", "vit2")[0] == 0


# ---- a run is stopped


LONG = {
    "name": "long",
    "given": {"train": "world:digits/train", "net": {"model": "mlp", "width": 16}},
    "steps": [
        {"random_rows": {"data": "$train", "keep": 0.5, "as": "half"}},
        {"train": {"model": "$net", "data": "$half", "steps": 1500, "batch_size": 8, "precision": "fp32", "with": [{"ema": {}}], "as": "trained"}},
    ],
}  # fmt: skip
DRIVER = "import sys, torch; torch.set_num_threads(1)\nimport trainlore.runs; trainlore.runs.EVERY = 0.05\nfrom trainlore.cli import main; main()"


@pytest.fixture(scope="module")
def uninterrupted(home):
    from trainlore import recipe as recipes
    from trainlore.execute import execute

    (home / "long.yaml").write_text(yaml.safe_dump(LONG))
    return execute(recipes.read(LONG), home / "whole" / "run")["trained"].fingerprint


def started(home, folder):
    """A run in a process of its own, somewhere in the middle of its training, with a checkpoint behind it."""
    run = subprocess.Popen(
        [sys.executable, "-c", DRIVER, "run", "long.yaml", "--out", f"{folder}/run"],
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 60
    while not list((home / folder).glob("run/checkpoints/*/step-*/hash")):
        assert run.poll() is None and time.monotonic() < until, run.communicate()
        time.sleep(0.01)
    return run


def went_on(tl, home, folder):
    from trainlore import trail

    before = json.loads((home / folder / "run" / "run.json").read_text())
    code, out, _ = tl("resume", f"{folder}/run", "-q")
    assert code == 0 and "(from the store)" in out
    record, kept = trail.opened(home / folder / "run")
    lines = [json.loads(line) for line in (home / folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["state"] == "finished" and not (home / folder / "run" / "checkpoints").exists()
    return before, kept.get(record["steps"][-1]["key"]).fingerprint, lines


def test_ctrl_c_stops_at_a_safe_place_and_resume_gives_the_same_bits(tl, home, uninterrupted):
    run = started(home, "stopped")
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 130, (out, err)
    assert (
        "stopping at the next safe place" in err
        and "stopped; go on with: trainlore resume stopped/run" in out
        and "Traceback" not in err
    )
    before, print_, lines = went_on(tl, home, "stopped")
    assert before["state"] == "interrupted" and print_ == uninterrupted
    assert [line["t"] for line in lines] == list(range(1, 1501))


def test_kill_9_costs_at_most_the_steps_since_the_checkpoint(tl, home, uninterrupted):
    run = started(home, "killed")
    run.kill()
    run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    before, print_, lines = went_on(tl, home, "killed")
    assert before["state"] == "running" and print_ == uninterrupted
    assert {line["t"] for line in lines} == set(range(1, 1501))


def test_starters_are_found_by_name_only():
    assert recipe_path(None) == recipe_path("first_life") == recipe_path("first_life.yaml")
    assert recipe_path("elsewhere/first_life.yaml") == Path("elsewhere/first_life.yaml")
