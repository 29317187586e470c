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
    ask: Callable[[str], str] | None = None,
    console: Console | None = None,
) -> int:
    """Ask for a label of every row that has none in `out`, and append each answer to it at once. How many were given.

    `data`: what Data.of takes. `choices`: names, or key=name; a class is written as its place among them, or as itself if
    all are whole numbers. A line of `out` is {"row": id, "label": class, "choice": name}; the last line on a row counts, so
    that going back overwrites nothing. `show`: the columns to print (all readable ones). `by`: a column of scores, highest
    first (the order of the rows otherwise). `ids`: the column that names rows (their own ids otherwise; after reading a file,
    their places in it). `ask`: what reads a line (standard input otherwise); its end, like q, ends the sitting.
    """
    from trainlore.nouns import Data

    rows, keys = Data.of(data), _keys(list(choices))
    rows.need(*[c for c in (by, ids, *show) if c], who="label")
    names = np.asarray(rows[ids] if ids else rows.ids).tolist()
    if len(set(names)) < len(rows):
        raise Bad(f"column {ids!r} names two rows alike: give a column that tells them apart")
    order = np.arange(len(rows)) if by is None else np.argsort(-np.asarray(rows[by], np.float64), kind="stable")
    told = read(out, column)
    todo = [int(i) for i in order if names[i] not in told]
    columns, text = list(show) or _readable(rows, column), _console(console)
    line, given, at = ask or _line, 0, 0
    menu = "  ".join(f"[bold]{k}[/bold] {_plain(name)}" for k, (_, name) in keys.items())
    text.print(f"{len(order) - len(todo)} of {len(order)} rows have a label; {out} has them", highlight=False)
    while at < len(todo):
        row = rows.take([todo[at]])
        name = names[todo[at]]
        text.print(_panel(row, columns, f"row {name}  ({at + 1} of {len(todo)})", told.get(name)))
        text.print(f"{menu}   [dim]{SKIP} skip  {BACK} back  {QUIT} quit[/dim]", highlight=False)
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
            text.print(f"[red]{_plain(said) or 'nothing'} is no choice[/red]", highlight=False)
    text.print(f"{given} labels given; {sum(names[i] not in told for i in order)} rows left", highlight=False)
    return given


def read(out: str | Path, column: str = "label") -> dict[Any, str]:
    """What the file says of each row, by the row's name: the last choice on it. Empty if there is no file yet."""
    path, found = Path(out), {}
    if not path.exists():
        return {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            told = json.loads(line)
            found[told["row"]] = str(told.get("choice", told[column]))
        except (ValueError, KeyError, TypeError):
            raise Bad(f"{path}, line {number}: no label with row and {column}: is this a file of labels?") from None
    return found


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
    """The key that was typed, or whose name was."""
    return said if said in keys else next((k for k, (_, name) in keys.items() if said and name == said), None)


def _append(out: str | Path, record: dict[str, Any]) -> None:
    """One line more, on the disk before the next question; a line cut short by a crash is ended first."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell() and (file.seek(-1, 2), file.read(1))[1] != b"\n":
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


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(str(text))
