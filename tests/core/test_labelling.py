"""Labels at the terminal: what is asked, written, taken back, gone on with, and refused."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from trainlore.labelling import label, read

ROWS = [{"text": t, "id": i, "score": s} for t, i, s in (("good", "a", 0.1), ("[bad]", "b", 0.9), ("fine", "c", 0.5))]


@pytest.fixture
def sit(tmp_path):
    """One sitting: the lines typed -> (labels given, what was printed)."""

    def sitting(*typed, out=tmp_path / "labels.jsonl", rows=ROWS, choices=("no", "yes"), **how):
        lines, printed = iter(typed), io.StringIO()

        def ask(prompt):
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        console = Console(file=printed, width=80, force_terminal=False)
        return label(rows, out, choices=choices, ask=ask, console=console, **how), printed.getvalue()

    sitting.out = tmp_path / "labels.jsonl"
    return sitting


def written(sit):
    return [json.loads(line) for line in sit.out.read_text().splitlines()]


def test_each_answer_is_a_line_with_the_rows_id_its_class_and_its_name(sit):
    given, printed = sit("2", "no", "1")
    assert given == 3 and all(t in printed for t in ("good", "[bad]", "fine", "1 no", "2 yes", "0 rows left"))
    assert written(sit) == [
        {"row": 0, "label": 1, "choice": "yes"},
        {"row": 1, "label": 0, "choice": "no"},
        {"row": 2, "label": 0, "choice": "no"},
    ]


def test_it_stops_and_goes_on_where_it_was(sit):
    assert sit("1", "q")[0] == 1 and len(written(sit)) == 1
    given, printed = sit("s", "2")  # then the input ends
    assert given == 1 and "good" not in printed and [w["row"] for w in written(sit)] == [0, 2]
    assert sit("1")[0] == 1 and read(sit.out) == {0: "no", 2: "yes", 1: "no"}
    assert sit("1")[0] == 0


def test_going_back_adds_a_line_and_the_last_one_counts(sit):
    given, printed = sit("b", "1", "b", "2", "nonsense", "", "1", "1")
    assert given == 4 and [w["row"] for w in written(sit)] == [0, 0, 1, 2] and read(sit.out)[0] == "yes"
    assert "nonsense is no choice" in printed and "now no" in printed


def test_order_by_a_score_rows_named_by_a_column_keys_and_a_column_of_another_name(sit):
    _, printed = sit("y", "n", "q", choices=("n=no", "y=yes"), by="score", ids="id", show=("text",), column="spam")
    assert written(sit) == [{"row": "b", "spam": 1, "choice": "yes"}, {"row": "c", "spam": 0, "choice": "no"}]
    assert "0.9" not in printed
    assert read(sit.out, "spam") == {"b": "yes", "c": "no"}


def test_whole_numbers_are_themselves_and_a_square_of_numbers_is_a_picture(sit):
    pixels = np.zeros((1, 64), np.float32)
    pixels[0, :8] = 1
    _, printed = sit("7", choices=map(str, range(10)), rows={"features": pixels})
    assert written(sit) == [{"row": 0, "label": 7, "choice": "7"}] and "@" * 16 in printed and printed.count("@") == 16


def test_a_pipe_will_do(tmp_path, monkeypatch, capsys):
    pool, out = tmp_path / "pool.jsonl", tmp_path / "new" / "labels.jsonl"
    pool.write_text("\n".join(json.dumps(r) for r in ROWS))
    monkeypatch.setenv("TRAINLORE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sys, "stdin", io.StringIO("1\ns\n2\n"))
    assert label(str(pool), out, choices=("no", "yes")) == 2 and read(out) == {0: "no", 2: "yes"}


def test_a_line_cut_short_does_not_spoil_the_next(sit):
    sit("1", "q")
    sit.out.write_text(sit.out.read_text().rstrip("\n"))
    sit("2")
    assert [w["row"] for w in written(sit)] == [0, 1]


def test_bad_input_is_named(sit, tmp_path):
    for how, says in (
        ({"choices": ("no",)}, "at least two"),
        ({"choices": ("no", "no")}, "every name"),
        ({"choices": ("s=no", "y=yes")}, "s is taken"),
        ({"choices": ("y=no", "y=yes")}, "every key"),
        ({"by": "doubt"}, "'doubt'"),
        ({"rows": [{"text": "x", "id": 1}, {"text": "y", "id": 1}], "ids": "id"}, "two rows alike"),
    ):
        with pytest.raises(ValueError, match=says):
            sit(**how)
    other = tmp_path / "notes.jsonl"
    other.write_text('{"row": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        sit(out=other)
    assert other.read_text() == '{"row": 1}\n'
