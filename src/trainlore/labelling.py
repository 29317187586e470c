"""Labels from a person at the terminal: a row at a time, an answer a line, written down as it is given."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainlore.errors import Bad

if TYPE_CHECKING:
    from rich.console import Console

    from trainlore.nouns import Data

SKIP, BACK, QUIT = "s", "b", "q"
BEGINS = b'{"row": '  # a line of answers
SHOWN = 4000  # characters of a column, at most
ARRAY = " .:-=+*#%@"  # from dark to bright, where a row is a small square picture


def label(
    data: Any,
    out: str | Path,
    column: str = "label",
    choices: Iterable[str] = (),
    show: Iterable[str] = (),
    by: str | None = None,
    ids: str | None = None,
    labelled: str | Path | None = None,
    ask: Callable[[str], str] | None = None,
    console: Console | None = None,
) -> int:
    """Ask for a label of every row that has none in `out`, and append each answer to it at once. How many were given.

    `data`: what Data.of takes, or the folder of a run whose active learning waits for answers: then those rows. `choices`:
    names, or key=name; a class is written as its place among them, or as itself if all are whole numbers. A line of `out` is
    {"row": id, "label": class, "choice": name}; the last line on a row counts, so that going back overwrites nothing. `show`:
    the columns to print (all readable ones). `by`: a column of scores, highest first (the order of the rows otherwise). `ids`:
    the column that names rows (their own ids otherwise; after reading a file, their places in it). `labelled`: a table to
    write at the end of the sitting, the rows that have a label with it as a column. `ask`: what reads a line (standard input
    otherwise); its end, like q, ends the sitting.
    """
    from trainlore.nouns import Data

    keys = _keys(list(choices))
    if waits := isinstance(data, str | Path) and (Path(data) / "run.json").exists():
        rows, ids = waiting(Path(data))
    else:
        rows = Data.of(data)
    rows.need(*[c for c in (by, ids, *show) if c], who="label")
    if labelled is not None:
        _writable(labelled, out)
    names = np.asarray(rows[ids] if ids else rows.ids).tolist()
    if len(set(names)) < len(rows):
        raise Bad(f"column {ids!r} names two rows alike: give a column that tells them apart")
    told = read(out, column, keys)
    place = {name: i for i, name in enumerate(names)}
    earlier = [place[name] for name in told if name in place]  # one may go back to them
    todo = [*earlier, *(int(i) for i in _order(rows, by) if names[i] not in told)]
    columns, text = list(show) or _readable(rows, column), _console(console)
    line, given, at = ask or _line, 0, len(earlier)
    menu = "  ".join(f"[bold]{_plain(k)}[/bold] {_plain(name)}" for k, (_, name) in keys.items())
    asked = "rows that the run waits for" if waits else "rows"
    text.print(f"{len(earlier):,} of {len(rows):,} {asked} have a label; answers go to {_plain(out)}", highlight=False)
    if any(str(value) != name for value, name in keys.values()):
        classes = ", ".join(f"{_plain(name)} as {value}" for value, name in keys.values())
        text.print(f"[dim]written: {classes}[/dim]", highlight=False)
    shown = -1  # the row whose panel need not be shown again
    while at < len(todo):
        row = rows.take([todo[at]])
        name = names[todo[at]]
        if shown != todo[at]:  # else it was no answer, and the row still stands there
            text.print(_panel(row, columns, f"row {name}  ({at + 1:,} of {len(todo):,})", told.get(name)))
            text.print(f"{menu}   [dim]{SKIP} skip  {BACK} back  {QUIT} quit[/dim]", highlight=False)
        shown = -1
        try:
            said = line("> ").strip()
        except (EOFError, KeyboardInterrupt):
            break
        if said == QUIT:
            break
        if said == SKIP:
            at += 1
        elif said == BACK:
            at = max(0, at - 1)
        elif (key := _meant(said, keys)) is not None:
            value, choice = keys[key]
            _append(out, {"row": name, column: value, "choice": choice})
            told[name] = choice
            given, at = given + 1, at + 1
        else:
            known = _plain(", ".join([*keys, SKIP, BACK, QUIT]))
            text.print(f"[red]{_plain(said) or 'nothing'} is no choice[/red]: type one of {known}", highlight=False)
            shown = todo[at]
    left = sum(name not in told for name in names)
    more = "; the same command goes on" if left else "; now run the recipe again" if waits else ""
    text.print(
        f"{given:,} label{'s' * (given != 1)} given; {left:,} row{'s' * (left != 1)} left{more}", highlight=False
    )
    if labelled is not None:
        values = {name: value for value, name in keys.values()}
        mine = [i for i, name in enumerate(names) if told.get(name) in values]
        if mine:
            from trainlore.single import table

            classes_ = np.array([values[told[names[i]]] for i in mine], np.int64)
            table(rows.take(mine).with_(**{column: classes_}), Path(labelled))
            text.print(f"{len(mine):,} rows with their label → {_plain(labelled)}", highlight=False)
    return given


def waiting(folder: Path) -> tuple[Data, str | None]:
    """The rows of the pool that the last active learning of a run asked about in vain, and the column that names them."""
    from trainlore import recipe, trail
    from trainlore.given import given

    record, store = trail.opened(folder)
    for at, step in reversed(list(enumerate(record["steps"]))):
        pool = str(step["fields"].get("pool", ""))
        if step["kind"] != "Fit" or not pool.startswith("$") or not store.has(step["key"]):
            continue
        about = store.get(step["key"]).about
        if "waiting" not in about:
            continue
        if not about["waiting"]:
            raise Bad(f"{folder}: {step['name']} had an answer for every row that it asked about: none is waiting")
        maker = next((s for s in reversed(record["steps"][:at]) if s["as"] == pool[1:]), None)
        if maker is not None:
            rows = store.get(maker["key"])
        else:
            spec = recipe.read(folder / "recipe.yaml").spec
            rows = given(pool[1:], spec.given[pool[1:]], spec.seed).get()
        return rows.where(np.isin(rows.ids, about["waiting"])), step["fields"].get("ids")
    raise Bad(f"{folder} is a run, but no active learning of it waits for answers: give the file of the rows instead")


def read(out: str | Path, column: str = "label", keys: dict[str, tuple[int, str]] | None = None) -> dict[Any, str]:
    """What the file says of each row, by the row's name: the last choice on it. Empty if there is no file yet.

    `keys`: the choices of now; Bad where the file writes one of them as another class."""
    path, found = Path(out), {}
    now = {name: value for value, name in (keys or {}).values()}
    names = {value: name for name, value in now.items()}
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == len(lines) and _cut_short(line)):
            continue
        try:
            told = json.loads(line)
            value = told[column]
            choice = str(told.get("choice", names.get(value, value)))
            found[told["row"]] = choice
        except (ValueError, KeyError, TypeError):
            raise Bad(f"{path}, line {number}: no label with row and {column}: is this a file of labels?") from None
        if now.get(choice, value) != value or names.get(value, choice) != choice:
            other = f"{choice} = {now[choice]}" if choice in now else f"{names[value]} = {value}"
            raise Bad(
                f"{path}, line {number}: {choice} is written as {value} there, and the choices of now make {other}: give the "
                "choices of before, in their order, or another --out"
            )
    return found


def _cut_short(line: bytes) -> bool:
    """Whether this is the beginning of a line of ours that a crash left."""
    try:
        json.loads(line)
    except ValueError:
        return line.startswith(BEGINS) or BEGINS.startswith(line)
    return False


def _order(rows: Data, by: str | None) -> np.ndarray:
    """The places of the rows, those with the highest score first and those without one last."""
    if by is None:
        return np.arange(len(rows))
    try:
        score = np.asarray(rows[by], np.float64)
        assert score.ndim == 1
    except (ValueError, TypeError, AssertionError):
        raise Bad(f"by={by!r}: the column holds {rows.table[by].type}, not a number a row to sort by") from None
    return np.argsort(-score, kind="stable")


def _writable(labelled: str | Path, out: str | Path) -> None:
    from trainlore.single import TABLES

    if Path(labelled).suffix not in TABLES:
        raise Bad(f"labelled={labelled}: rows are written as {', '.join(TABLES)}")
    if Path(labelled).resolve() == Path(out).resolve():
        raise Bad(f"{out} holds the answers: write the rows with their label to another file")


def _keys(choices: list[str]) -> dict[str, tuple[int, str]]:
    """What to type for each choice: its key, the class that is written, its name."""
    if len(choices) < 2:
        raise Bad(f"choices={choices}: give at least two, such as no, yes or n=no, y=yes")
    pairs = [c.split("=", 1) if "=" in c else [str(i + 1), c] for i, c in enumerate(choices)]
    keys, names = [k.strip() for k, _ in pairs], [n.strip() for _, n in pairs]
    if all(n.lstrip("-").isdigit() for n in names):  # the classes are numbers: they are their own keys
        keys = [k if "=" in c else n for c, k, n in zip(choices, keys, names, strict=True)]
        values = [int(n) for n in names]
    else:
        values = list(range(len(names)))
    for word, many in (("key", keys), ("name", names)):
        if len(set(many)) < len(many) or not all(many):
            raise Bad(f"choices={choices}: every {word} must be there and be another")
    if clash := {SKIP, BACK, QUIT} & set(keys):
        raise Bad(f"choices={choices}: {', '.join(sorted(clash))} is taken by skip, back or quit")
    return dict(zip(keys, zip(values, names, strict=True), strict=True))


def _meant(said: str, keys: dict[str, tuple[int, str]]) -> str | None:
    """The key that was typed, or whose name was; in capitals or not, where only one can be meant."""
    for plain in (str, str.casefold):
        meant = [k for k, (_, name) in keys.items() if said and plain(said) in (plain(k), plain(name))]
        if said in keys or len(meant) == 1:
            return said if said in keys else meant[0]
    return None


def _append(out: str | Path, record: dict[str, Any]) -> None:
    """One line more, on the disk before the next question; a line that a crash cut short is taken away first."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if (size := file.tell()) and (file.seek(-1, 2), file.read(1))[1] != b"\n":
            file.seek(0)
            last = file.read().rpartition(b"\n")[2]
            if _cut_short(last):
                file.truncate(size - len(last))
            else:
                file.write(b"\n")
        file.write((json.dumps(record, ensure_ascii=False) + "\n").encode())


def _readable(rows: Data, column: str) -> list[str]:
    """The columns a person can read: not the label itself, not tokens."""
    hidden = {column, "input_ids", "labels", "attention_mask", "parents"}
    return [c for c in rows.columns if c not in hidden]


def _panel(row: Data, columns: list[str], title: str, told: str | None) -> Any:
    from rich.panel import Panel
    from rich.text import Text

    body = Text()
    for name in columns:
        body.append(f"{name}  " if len(columns) > 1 else "", style="dim")
        body.append(_shown(row, name) + "\n")
    body.rstrip()
    return Panel(body, title=_plain(title) + (f", now {_plain(told)}" if told is not None else ""), title_align="left")


def _shown(row: Data, name: str) -> str:
    """A cell as text; a square of numbers as a picture."""
    cell = row.table[name].take(row.rows)[0].as_py() if row.rows is not None else row.table[name][0].as_py()
    if isinstance(cell, list) and cell and all(isinstance(v, int | float) for v in cell):
        side, grey = round(len(cell) ** 0.5), np.asarray(cell, float)
        if side * side == len(cell) and side > 2:
            level = (grey - grey.min()) / max(1e-12, float(np.ptp(grey))) * (len(ARRAY) - 1)
            return "\n" + "\n".join("".join(2 * ARRAY[int(v)] for v in line) for line in level.reshape(side, side))
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN else text[:SHOWN] + f" ... ({len(text):,} characters)"


def _line(prompt: str) -> str:
    """A line of standard input, from a person or a pipe."""
    if sys.stdin.isatty():
        return input(prompt)
    said = sys.stdin.readline()
    if not said:
        raise EOFError
    return said


def _console(console: Console | None) -> Console:
    from rich import get_console

    return console or get_console()


def _plain(text: Any) -> str:
    from rich.markup import escape

    return escape(str(text))
