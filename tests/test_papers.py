"""The index of papers: whole, honest, quick and free of torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainlore.papers import papers

INDEX = {"learning_trend": {"card": {"lit": "p015"}}, "two": {"card": {"lit": ["p201", "p015"]}}, "none": {"card": {}}}


def test_every_paper_has_a_method_or_a_reason():
    rows = papers(INDEX)
    assert len(rows) == len({row["id"] for row in rows}) == 575
    assert all(bool(row["methods"]) != bool(row["reason"]) for row in rows)
    assert all(
        row["reason"].endswith(".") and len(row["reason"]) < 320 and "\n" not in row["reason"] for row in papers({})
    )


def test_methods_come_from_the_cards():
    rows = {row["id"]: row for row in papers(INDEX)}
    assert rows["p015"]["methods"] == ["learning_trend", "two"] and rows["p201"]["methods"] == ["two"]
    assert rows["p224"]["methods"] == [] and rows["p224"]["reason"].startswith(
        "Not built yet: it would take a curve fit"
    )


def test_reasons_fit_their_tier():
    for row in papers({}):
        start = {"core": "Not built yet:", "llm": "It needs a writer", "modality": "It needs ", "knowledge": "It "}[
            row["tier"]
        ]
        assert row["reason"].startswith(start), row
    assert any("nothing to run" in row["reason"] for row in papers({}))


def test_a_card_that_cites_a_paper_nobody_has_is_named():
    with pytest.raises(ValueError, match="p999"):
        papers({"typo": {"card": {"lit": "p999"}}})


def test_loads_no_torch():
    code = "import sys; from trainlore.papers import papers; papers({}); print(any(m in sys.modules for m in ('torch', 'numpy')))"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout.strip()
        == "False"
    )
