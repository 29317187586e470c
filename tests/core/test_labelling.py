"""Labels at the terminal: what is asked, written, taken back, gone on with, and refused."""

from __future__ import annotations

import io
import json
import sys

import numpy as np
import pytest
from rich.console import Console

from trainlore import labelling, trail
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
    assert "nonsense is no choice: type one of 1, 2, s, b, q" in printed and "now no" in printed
    assert printed.count("row 1  ") == 2 and "nothing is no choice" in printed  # a slip shows the row no second time


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


def test_going_back_reaches_the_answers_of_earlier_sittings(sit):
    sit("1", "2", "q")
    given, printed = sit("b", "b", "2", "q")
    assert given == 1 and read(sit.out) == {0: "yes", 1: "yes"} and "now no" in printed
    assert "2 of 3 rows have a label" in printed and "(3 of 3)" in printed


def test_classes_that_would_change_their_numbers_are_refused(sit):
    sit("1", "q")
    before = sit.out.read_bytes()
    for choices, says in (
        (("yes", "no"), r"line 1: no is written as 0 there, .* no = 1"),
        (("bad", "good"), "bad = 0"),
    ):
        with pytest.raises(ValueError, match=says):
            sit("1", choices=choices)
    assert sit.out.read_bytes() == before
    assert sit("3", "q", choices=("no", "yes", "maybe"))[0] == 1  # more classes change none that was there
    sit.out.write_text('{"row": 0, "label": 1}\n')  # rows of elsewhere, without names
    assert read(sit.out) == {0: "1"} and sit("q")[0] == 0


def test_half_a_line_that_a_crash_left_goes_and_nothing_else_does(sit):
    sit("1", "q")
    whole = sit.out.read_bytes()
    sit.out.write_bytes(whole + b'{"row": 1, "lab')
    assert sit("q")[0] == 0 and sit("2")[0] == 1
    assert [w["row"] for w in written(sit)] == [0, 1] and sit.out.read_bytes().startswith(whole)
    sit.out.write_text("my notes")  # not ours, though no line ends in it
    with pytest.raises(ValueError, match="is this a file of labels"):
        sit("1")
    assert sit.out.read_text() == "my notes"


def test_capitals_and_what_is_written_for_each_choice(sit):
    given, printed = sit("Y", "N", "x", choices=("n=no", "y=yes"))
    assert given == 2 and "no as 0, yes as 1" in printed and "1 row left; the same command goes on" in printed
    assert "written:" not in sit("q", choices=("0", "1"), out=sit.out.with_name("other.jsonl"))[1]
    _, printed = sit("n", choices=("n=a", "N=b"), out=sit.out.with_name("third.jsonl"))
    assert '"a"' in sit.out.with_name("third.jsonl").read_text()


def test_labelled_rows_are_written_as_a_table(sit, tmp_path):
    from trainlore.nouns import Data

    _, printed = sit("2", "1", "q", labelled=tmp_path / "train.jsonl", ids="id")
    made = Data.of(tmp_path / "train.jsonl")
    assert (made["label"].tolist(), list(made.text())) == ([1, 0], ["good", "[bad]"])
    assert "2 rows with their label" in printed
    sit("b", "2", "q", labelled=tmp_path / "train.jsonl", ids="id")
    assert Data.of(tmp_path / "train.jsonl")["label"].tolist() == [1, 1]
    for where, says in ((tmp_path / "x.txt", "written as .jsonl"), (sit.out, "holds the answers")):
        with pytest.raises(ValueError, match=says):
            sit("q", labelled=where)


def test_scores_that_are_none_come_last_and_words_are_no_scores(sit):
    rows = [{"text": t, "score": s} for t, s in (("a", float("nan")), ("b", 0.1), ("c", 0.9))]
    sit("1", "1", "1", rows=rows, by="score")
    assert [w["row"] for w in written(sit)] == [2, 1, 0]
    with pytest.raises(ValueError, match="'text'.*not a number a row"):
        sit("1", by="text")


def test_a_run_that_waits_for_answers_is_asked_about(sit, tmp_path, monkeypatch):
    """Active learning at a terminal: run, label what it asked, run again until nothing waits."""
    from trainlore import page
    from trainlore import recipe as recipes
    from trainlore.execute import execute
    from trainlore.nouns import Data

    pool, answers = Data.of("world:digits/spare"), tmp_path / "labels.jsonl"
    truth = pool["truth"].tolist()
    answers.write_text(json.dumps({"row": 0, "label": truth[0], "choice": str(truth[0])}) + "\n")
    step = {"model": "$net", "data": "$train", "pool": "$pool", "oracle": "$answers", "acquire": {"uncertainty": {}}}
    raw = {
        "given": {"train": {"data": "world:digits/train", "rows": 50}, "pool": "world:digits/spare", "net": "mlp",
                  "answers": str(answers)},
        "steps": [{"active_learning": {**step, "count": 3, "rounds": 2, "steps": 5, "as": "taught"}}],
    }  # fmt: skip
    choices, asked = [str(i) for i in range(10)], []
    for turn in range(3):
        run = tmp_path / f"run{turn}"
        execute(recipes.read(raw), run)
        text = page.write(run).read_text()
        if turn == 2:
            break
        rows, _ = labelling.waiting(run)
        (read, line) = trail.row(run, int(rows.ids[0]), "pool")
        assert read["what"] == "read as pool" and line["what"] == "asked about, and waiting for an answer"
        assert len(rows) in (2, 3) and "wait for an answer" in text
        given, printed = sit(*(str(truth[i]) for i in rows.ids), rows=run, out=answers, choices=choices)
        assert given == len(rows) and "rows that the run waits for" in printed
        asked += rows.ids.tolist()
    told = trail.opened(run)[1].get(trail.opened(run)[0]["steps"][0]["key"]).about["asked"]
    assert [r for t in told for r in t["rows"]] and set(asked) <= {r for t in told for r in t["rows"]} | {0}
    assert [r["label"] for r in map(json.loads, answers.read_text().splitlines())] == [truth[i] for i in [0, *asked]]
    first = told[0]["rows"][0]
    assert trail.row(run, first, "pool")[-1]["what"] == f"asked about in round 1: class {truth[first]}"
    assert '<section id="asked">' in text and "wait for an answer" not in text
    with pytest.raises(ValueError, match="none is waiting"):
        sit("1", rows=run, out=answers, choices=choices)
    raw["steps"][0]["active_learning"] |= {"oracle": str(answers)}
    for turn, known in enumerate((False, True, False)):  # a path is another step as soon as its file is another
        if turn == 2:
            with answers.open("a") as file:
                file.write(json.dumps({"row": 1, "label": truth[1]}) + "\n")
        execute(recipes.read(raw), tmp_path / f"path{turn}")
        assert trail.opened(tmp_path / f"path{turn}")[0]["steps"][0]["cached"] is known
    execute(recipes.read({**raw, "steps": [{"random_rows": {"data": "$pool", "keep": 0.5}}]}), tmp_path / "none")
    with pytest.raises(ValueError, match="no active learning of it waits"):
        labelling.waiting(tmp_path / "none")
