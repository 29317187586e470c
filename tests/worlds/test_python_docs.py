"""The embedded world: what is read, in which order, and which side of a split it falls on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from trainlore.errors import Bad
from trainlore.worlds import python_docs as world
from trainlore.worlds.python_docs import extracting, gathering, packages, parsing

SOURCE = '''\
"""What this module is about."""
import os

LIMIT: int = 3

if os.name:
    def add(
        a: int,  # the first
        *, b: str = "x: #",
    ) -> int:
        """Add two numbers.

        Keeps
            inner indentation.
        """
        # why
        total = a + b

        return total

class Thing(dict):
    """Hold the things there are."""
    size = 3

    async def grow(self, by=1):
        """Grow by some amount, "é".""" 
        self.size += by

    @property
    def short(self): return 1

    def short_doc(self):
        """Too short."""
'''


NX = "networkx"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `odd` with everything that goes wrong in real ones."""
    root = tmp_path / "site" / "odd"
    for name in ("sub", "tests", "_vendor", "__pycache__"):
        (root / name).mkdir(parents=True)
        (root / name / "x.py").write_text(SOURCE)
    (root / "__init__.py").write_text('"""The odd package of them all."""\n')
    (root / "test_x.py").write_text(SOURCE)
    (root / "broken.py").write_text('"""Does not parse at all."""\ndef f(:\n')
    (root / "latin.py").write_bytes('# -*- coding: latin-1 -*-\n"""Café in a file of latin-1."""\n'.encode("latin-1"))
    (root / "bytes.py").write_bytes(b'"""One \xff byte that is not text."""\n')
    (root / "half.py").write_text('"""Half of a pair \\ud800 stands here."""\n')
    (root / "crlf.py").write_bytes(b'def f():\r\n    """Ends of lines from\r\n    elsewhere."""\r\n    return 1\r\n')
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return root


def test_a_file_is_read_to_the_letter():
    rows = [dict(zip(parsing.COLUMNS, r, strict=True)) for r in parsing.documented(SOURCE.encode(), "odd", "sub/x.py")]
    assert [(r["name"], r["kind"], r["line"]) for r in rows] == [
        ("odd.sub.x", "module", 1),
        ("odd.sub.x.add", "function", 7),
        ("odd.sub.x.Thing", "class", 21),
        ("odd.sub.x.Thing.grow", "method", 25),
    ]
    module, add, thing, grow = rows
    assert add["text"] == "Add two numbers.\n\nKeeps\n    inner indentation."
    assert add["signature"] == "def add(a: int, *, b: str='x: #') -> int:"
    assert add["code"] == "    # why\n    total = a + b\n\n    return total"
    assert thing["signature"] == "class Thing(dict):"
    assert thing["code"].splitlines() == [
        "    size = 3",
        "    async def grow(self, by=1): ...",
        "    def short(self): ...",
        "    def short_doc(self): ...",
    ]
    assert (grow["signature"], grow["code"]) == ("async def grow(self, by=1):", "    self.size += by")
    assert module["code"] == "    LIMIT: int = 3\n    class Thing(dict): ..."
    for r in rows[1:]:  # what is shown to a model is Python
        compile(r["signature"] + "\n" + r["code"], "row", "exec")


def test_code_is_bounded_at_a_line_end():
    body = "\n".join(f"    value_{i} = {i}" for i in range(1000))
    ((*_, code, _, _, _, _, _),) = parsing.documented(
        f'def f():\n    """Has a long body."""\n{body}\n'.encode(), "odd", "x.py"
    )
    assert parsing.CODE - 30 < len(code) <= parsing.CODE and f"{body}\n".startswith(code + "\n")


def test_odd_files_are_read_or_passed_over(package, tmp_path):
    table = world.gather(tmp_path / "cache", ("odd",))
    first = dict(zip(table["path"].to_pylist(), table["text"].to_pylist(), strict=True))
    assert set(first) == {"__init__.py", "bytes.py", "crlf.py", "half.py", "latin.py", "sub/x.py"}
    assert first["latin.py"] == "Café in a file of latin-1."
    assert first["bytes.py"] == "One \ufffd byte that is not text."
    assert first["half.py"] == "Half of a pair ? stands here."
    assert first["crlf.py"] == "Ends of lines from\nelsewhere."
    assert table["name"].to_pylist()[0] == "odd"
    assert not any(str(tmp_path) in v for c in ("name", "path", "text", "code") for v in table[c].to_pylist())


def test_the_cache_is_mapped_and_knows_when_it_is_stale(package, tmp_path, monkeypatch):
    first = world.gather(tmp_path / "cache", ("odd",))
    extracted = gathering.extracted
    monkeypatch.setattr(gathering, "extracted", lambda *a: pytest.fail("read again"))
    assert world.gather(tmp_path / "cache", ("odd",)).equals(first, check_metadata=True)
    monkeypatch.setattr(gathering, "extracted", extracted)
    (package / "more.py").write_text('"""One more module of it."""\n')
    assert world.gather(tmp_path / "cache", ("odd",)).num_rows == first.num_rows + 1
    for kept in (tmp_path / "cache").glob("*.arrow"):
        kept.write_bytes(b"damaged")
    assert world.gather(tmp_path / "cache", ("odd",)).num_rows == first.num_rows + 1
    assert not list((tmp_path / "cache").glob(".writing*"))


def test_home_is_where_the_environment_says(package, tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINLORE_HOME", str(tmp_path / "home"))
    world.gather(packages=("odd",))
    assert len(list((tmp_path / "home" / "worlds").glob("python_docs-*.arrow"))) == 1


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return world.gather(tmp_path_factory.mktemp("cache"), ("networkx", "rich", "fsspec", "click"))


def test_real_packages(real):
    sizes = world.megabytes(real)
    assert list(sizes) == ["click", "fsspec", "networkx", "rich"] and sizes["networkx"] > 1
    about = json.loads(real.schema.metadata[b"trainlore"])
    assert (
        about["megabytes"] == {d: round(mb, 3) for d, mb in sizes.items()}
        and sum(about["rows"].values()) == real.num_rows
    )
    assert set(pc.unique(real["kind"]).to_pylist()) == {"module", "class", "function", "method"}
    assert (
        min(pc.utf8_length(real["text"]).to_pylist()) > 4
        and max(pc.utf8_length(real["code"]).to_pylist()) <= parsing.CODE
    )
    places = list(zip(*(real[c].to_pylist() for c in ("domain", "path", "line")), strict=True))
    assert places == sorted(places)


def test_any_number_of_workers_gives_the_same_rows(tmp_path, monkeypatch):
    found = packages.located(("rich", "fsspec", "click"), must=True)
    alone = extracting.extracted(found, workers=1)
    ran = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: ran.append(popen(*a, **k)) or ran[-1])
    assert world.fingerprint(extracting.extracted(found, workers=2)) == world.fingerprint(alone)
    assert [p.returncode for p in ran] == [0]  # the other did its share
    monkeypatch.setattr(sys, "executable", os.devnull)  # no process can be started: all is read here
    assert world.fingerprint(extracting.extracted(found, workers=2)) == world.fingerprint(alone)


def test_the_fingerprint_sees_content_and_order_only(real):
    some = real.slice(0, 100)
    again = pa.concat_tables([some.slice(0, 7), some.slice(7)])
    assert world.fingerprint(some) == world.fingerprint(again)
    assert world.fingerprint(some) != world.fingerprint(some.take(np.arange(100)[::-1]))
    changed = some.set_column(0, "text", pc.utf8_upper(some["text"]))
    assert world.fingerprint(some) != world.fingerprint(changed)


def test_parts_share_no_text(real):
    copies = real.filter(pc.equal(real["domain"], "networkx")).slice(0, 50)
    copies = copies.set_column(5, "domain", pa.array(["rich"] * 50, pa.large_string()))  # a vendored copy of the target
    table = pa.concat_tables([real, copies, real.slice(0, 300)])
    made = world.parts(table, NX)
    sides = {name: set(part["text"].to_pylist()) for name, part in made.items()}
    assert not any(sides[a] & sides[b] for a in sides for b in sides if a != b)
    assert (
        set(made["pool"]["domain"].to_pylist())
        == {"rich", "fsspec", "click"}
        == set(made["held_out"]["domain"].to_pylist())
    )
    kept = made["pool"].num_rows + made["held_out"].num_rows
    assert 0.07 < made["held_out"].num_rows / kept < 0.13
    assert 0.4 < made["target_dev"].num_rows / (made["target_dev"].num_rows + made["target_test"].num_rows) < 0.6
    before = set(world.parts(real, NX)["held_out"]["text"].to_pylist())
    assert before == sides["held_out"]  # more rows move nobody
    assert world.parts(real, NX, held_out=0)["held_out"].num_rows == 0


def test_parts_say_what_is_wrong(real):
    with pytest.raises(Bad, match="target='scypi' is no domain of this table; there are click, fsspec, networkx, rich"):
        world.parts(real, target="scypi")
    with pytest.raises(Bad, match="held_out=1: a share"):
        world.parts(real, NX, held_out=1)


def test_summaries_are_first_lines_of_what_is_shown(real):
    made = world.summaries(real, longest=300)
    assert made.num_rows > 1500 and made.column_names == ["prompt", "completion", "domain", "name"]
    assert max(map(len, made["prompt"].to_pylist())) <= 300
    first = {n: t.split("\n")[0] for n, t in zip(real["name"].to_pylist(), real["text"].to_pylist(), strict=True)}
    rows = made.slice(0, 500).to_pylist()
    assert sum(first[r["name"]] == r["completion"] for r in rows) > 480  # names defined twice hold the later one
    for r in rows:
        assert r["completion"] not in r["prompt"] and len(r["completion"].split()) >= 4
        assert r["prompt"].endswith("\n\n")


def test_rejected_lines_belong_elsewhere(real):
    made = world.preferences(real)
    rows = made.to_pylist()
    assert len(rows) > 0.99 * world.summaries(real).num_rows
    assert all(r["chosen"] != r["rejected"] for r in rows)
    domain = {}
    for r in rows:
        domain.setdefault(r["chosen"], set()).add(r["domain"])
    assert all(r["domain"] in domain.get(r["rejected"], {r["domain"]}) for r in rows)
    gap = np.array([abs(len(r["chosen"]) - len(r["rejected"])) for r in rows])
    assert np.mean(gap <= 8) > 0.95
    assert made.equals(world.preferences(real))


def test_parts_are_made_when_asked_for(package, tmp_path, monkeypatch):
    made = world.Parts(tmp_path / "cache", ("odd", "rich"), target="odd")
    assert not made and made["target_dev"].num_rows + made["target_test"].num_rows == 9
    assert made["summaries"].num_rows > made["summaries_test"].num_rows > 0
    assert set(made["preferences"]["domain"].to_pylist()) == {"rich"}
    with pytest.raises(KeyError):
        made["train"]


def test_too_little_is_said(package, tmp_path, monkeypatch):
    monkeypatch.setattr(gathering, "PACKAGES", ("odd", "not_there"))
    monkeypatch.setattr(importlib.metadata, "packages_distributions", dict)
    with pytest.raises(Bad, match=r"the 1 packages here hold 0.0 MB of docstrings, 10 are asked for"):
        world.gather(tmp_path / "cache")
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: {"rich": [], "odd": []})
    table = world.gather(tmp_path / "cache", least_mb=0.05)
    assert list(world.megabytes(table)) == ["odd", "rich"]
    with pytest.raises(Bad, match="package 'not_there' is not installed"):
        world.gather(tmp_path / "cache", ("not_there",))


def test_a_script_without_a_main_guard_runs_once(tmp_path):
    """Worker processes must not run the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(f"""
        print("once")
        from pathlib import Path
        from trainlore.worlds import python_docs
        print(python_docs.gather(Path({str(tmp_path)!r}), ("rich", "fsspec"), workers=2).num_rows > 500)
        """)
    )
    beside = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    out = subprocess.run([sys.executable, str(script)], env=beside, capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["once", "True"]
