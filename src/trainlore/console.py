"""Lines for people: printed with colour where there is a terminal, whole elsewhere. Loads nothing but rich, when it speaks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any


def say(text: Any = "") -> None:
    """Print with colour where there is a terminal; elsewhere a line stays one line, however long."""
    from rich import get_console

    console = get_console()
    console.print(text, soft_wrap=not console.is_terminal)


def esc(text: Any) -> str:
    """Text that is not ours, for `say`: square brackets in it are no markup."""
    from rich.markup import escape

    return escape(str(text))


def teller(bars: Any) -> Callable[[str], None]:
    """How to say a line while progress bars are shown (a rich Progress), or while there are none (None)."""
    return (lambda text: bars.console.print(text, highlight=False)) if bars else say


def complain(text: str) -> None:
    """An error in one line, on stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), text))


def table(columns: Iterable[tuple[str, str]], rows: Iterable[list[str]], width: int, **how: Any) -> Any:
    """Print a plain table, and give the rich Console it went to, for the lines below it.

    `columns`: titles, each with the side it keeps to ("left" or "right"). `rows`: cells, which may hold markup. `width`: in
    letters, where there is no terminal. `how`: goes to every column.
    """
    from rich.console import Console
    from rich.table import Table

    drawn = Table(box=None, header_style="dim", pad_edge=False)
    for name, side in columns:
        drawn.add_column(name, justify=side, **how)  # type: ignore[arg-type]
    for row in rows:
        drawn.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=width)
    console.print(drawn)
    return console
