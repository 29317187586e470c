"""How much memory a method says it needs, and whether the machine has it, before anything runs.

A method that keeps more than a few numbers a row says so on itself, as a formula of bytes beside the data:

    needs_memory = "rows * (8 * width + 26 * k)"

of `rows`, of `width` (how many numbers embed a row) and of its own fields: numbers as they are, data by its rows, text
as 1 where there is some and as 0 where there is none. The index holds the formula, so a recipe is judged without
importing the method.
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainlore.errors import Bad
from trainlore.registry import entry, index
from trainlore.units import amount

if TYPE_CHECKING:
    from trainlore.recipe import Step

OPERATIONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Pow: operator.pow,
}
CALLS: dict[str, Callable[..., Any]] = {"min": min, "max": max}
NARROWS = ("data/select", "data/clean")  # families whose steps give no more rows than they take, as a rule


@dataclass(frozen=True)
class Need:
    """What one step needs: bytes beside the rows it is given."""

    name: str
    rows: int
    bytes: int

    def __str__(self) -> str:
        return f"{self.name} on {self.rows:,} rows needs about {self.bytes / 2**30:.1f} GiB ({entry(self.name)[KEY]} bytes)"


KEY = "needs_memory"


def bytes_of(name: str, rows: int, width: int = 0, fields: dict[str, Any] | None = None) -> int | None:
    """Bytes that the method needs beside its data; None where it makes no claim, which is little for each row.

    `width`: numbers that embed a row. `fields`: those that are given; the others count at their defaults. Raises Bad
    where the formula is none or speaks of a field that is no number.
    """
    formula = entry(name).get(KEY)
    if formula is None:
        return None
    known = {k: _number(v["default"]) for k, v in entry(name)["fields"].items()}
    known |= {k: _number(v) for k, v in (fields or {}).items() if k in known}
    try:
        return int(_worth(ast.parse(str(formula), mode="eval").body, known | {"rows": rows, "width": width}))
    except ZeroDivisionError:  # a field at 0, of which the method itself will say that it cannot be
        return None
    except (SyntaxError, TypeError, ArithmeticError, KeyError) as error:
        raise Bad(f"{name}: {KEY} = {formula!r} gives no number ({type(error).__name__}: {error})") from None


def _number(value: Any) -> Any:
    """A field's value as a number, if it is one: as Python, a recipe or the index has it; of data the rows."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            try:
                value = amount(value)
            except Bad:
                return 1
    if value is None or isinstance(value, str):
        return int(bool(value))
    if isinstance(value, int | float):
        return value
    return len(value) if type(value).__name__ == "Data" else None


def _worth(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name):
        if known.get(node.id) is None:
            raise KeyError(node.id)
        return known[node.id]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_worth(node.left, known), _worth(node.right, known))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLS and not node.keywords:
        return CALLS[node.func.id](*(_worth(one, known) for one in node.args))
    raise KeyError(ast.unparse(node))


# ---- of a method with its rows, and of a whole recipe


def of_method(method: Any, data: Any) -> Need | None:
    """What this method needs on these rows."""
    card = getattr(type(method), "card", None)
    if card is None or KEY not in index().get(card["name"], {}):  # a class made on the spot is in no index
        return None
    name = card["name"]
    fields = {k: getattr(method, k) for k in entry(name)["fields"]}
    return Need(name, len(data), bytes_of(name, len(data), _width(name, fields, data), fields) or 0)


def of_steps(steps: Iterable[Step], find: Callable[[str], Any]) -> list[Need]:
    """What the steps of a recipe need, as far as their rows are known before it runs.

    `find(name)` gives the noun that is there already, or None. Rows that a selection gives count as those it was given.
    """
    from_: dict[str, str] = {}  # what a step gives -> the noun that is there whose rows they are, at most
    needs = []
    for step in steps:
        if step.kind != "Curate":
            continue
        origin = from_.get(step.wires["data"], step.wires["data"])
        if entry(step.name)["card"]["family"] in NARROWS:
            from_[step.gives] = origin
        if KEY in entry(step.name) and (data := find(origin)) is not None:
            fields = {k: find(v[1:]) if isinstance(v, str) and v[:1] == "$" else v for k, v in step.fields.items()}
            found = bytes_of(step.name, len(data), _width(step.name, fields, data), fields)
            needs.append(Need(step.name, len(data), found or 0))
    return needs


def _width(name: str, fields: dict[str, Any], data: Any) -> int:
    """Numbers that embed a row: those of its encoder's last layer, or of the column of embeddings; 0 where there is none."""
    from trainlore.nouns import Model

    for field in ("encoder", "model"):
        if isinstance(model := fields.get(field), Model):
            config = getattr(model.net, "config", None)
            if getattr(config, "hidden_size", None):
                return int(config.hidden_size)  # type: ignore[union-attr]
            return int(list(model.linears(head=True))[-1][1].in_features)
    column = fields.get("column") or ast.literal_eval(entry(name)["fields"].get("column", {}).get("default") or "''")
    if column not in data.columns or not len(data):
        return 0
    first = data.take([0])[column]
    return int(first.shape[1]) if getattr(first, "ndim", 1) == 2 else 0


def held_against(needs: Iterable[Need], at_once: int = 1) -> None:
    """Raise Bad where a step needs more than the machine has; warn where it needs more than is free now.

    `at_once`: processes that may each run it at the same time.
    """
    import psutil

    memory = psutil.virtual_memory()
    for need in sorted(needs, key=lambda n: -n.bytes)[:1]:
        times = f", {at_once} of them at once" if at_once > 1 else ""
        out = "take a sample of the rows first (random_rows), or narrower embeddings" + (
            ", or fewer jobs" if at_once > 1 else ""
        )
        if need.bytes * at_once > memory.total:
            raise Bad(f"{need}{times}, and the machine has {memory.total / 2**30:.1f} GiB: {out}")
        if need.bytes * at_once > memory.available:
            free = f"{memory.available / 2**30:.1f} GiB are free"
            warnings.warn(f"{need}{times}, and {free}: {out}", stacklevel=3)
