"""What a method may be: one of four steps, or a part of the training loop."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, dataclass_transform

from trainlore.slots import LIFE, SLOTS

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model, Report


class Step:
    """A frozen dataclass of hyperparameters, called with the nouns that flow.

    Called as `method(run, *nouns)` by the engine, or as `method(*nouns)` by a person: then a run is made, seed 0.
    """

    card: ClassVar[dict[str, Any]]
    tiny: ClassVar[dict[str, Any] | None] = None  # how the contract tries it: a world's name, then fields
    null: ClassVar[dict[str, Any] | None] = None  # the fields that make it do exactly nothing
    ranges: ClassVar[Mapping[str, list[Any]]] = {}  # where tuning looks, by field: [low, high], with "log", or choices
    needs_memory: ClassVar[str] = ""  # bytes beside its data, where they are many: a formula; see trainlore.needs

    if TYPE_CHECKING:  # the engine's form has a run in front; a person leaves it out

        def __call__(self, *nouns: Any) -> Any: ...

    def __init_subclass__(cls) -> None:
        own = vars(cls).get("__call__")
        if own is None:
            return

        @functools.wraps(own)
        def call(self: Step, *nouns: Any) -> Any:
            from trainlore.runs import Run, noun

            if nouns and isinstance(nouns[0], Run):
                return own(self, *nouns)
            return Run().step(self, *(noun(n) for n in nouns))

        cls.__call__ = call  # type: ignore[method-assign]


class Curate(Step):
    """Data -> Data: keep, drop, weigh, rewrite or make rows."""

    if TYPE_CHECKING:

        def __call__(self, *nouns: Any) -> Data: ...


class Shape(Step):
    """Model -> Model without training: initialize, grow, merge, adapt, prune, round."""

    keeps: ClassVar[bool] = False  # True: the outputs must be what they were, and the parity gate checks it

    if TYPE_CHECKING:

        def __call__(self, *nouns: Any) -> Model: ...


class Fit(Step):
    """(Model, Data) -> Model by training, with a loop of its own or `run.fit`."""

    if TYPE_CHECKING:

        def __call__(self, *nouns: Any) -> Model: ...


class Measure(Step):
    """(Model, Data) -> Report: one value a row, never an average without its parts."""

    if TYPE_CHECKING:

        def __call__(self, *nouns: Any) -> Report: ...


class Part:
    """A frozen dataclass of hyperparameters whose methods are slots of the training loop.

    What changes lives in the dict that `start` returns and every slot receives, never in `self`:
    the engine saves it, so every part resumes. The table of slots and their laws is `trainlore.slots`.
    """

    card: ClassVar[dict[str, Any]]
    tiny: ClassVar[dict[str, Any] | None] = None
    null: ClassVar[dict[str, Any] | None] = None
    ranges: ClassVar[Mapping[str, list[Any]]] = {}
    needs: ClassVar[Mapping[str, str]] = {}  # the batch columns it reads, and what each must hold
    gives: ClassVar[Mapping[str, str]] = {}  # the batch columns it adds or turns into something else
    rowwise: ClassVar[bool] = True  # its loss is one value a row or token
    known: ClassVar[Mapping[str, str]] = {}  # laws it is known to break, each with the reason
    alone: ClassVar[str] = ""  # why it runs on one process only, if it does
    sharded: ClassVar[bool] = False  # its reach for the weights holds where each process has a share of every weight

    def start(self, loop: Any) -> dict[str, Any]:
        """All state of the part; the engine saves it and hands it to every slot."""
        return {}

    def __init_subclass__(cls) -> None:
        for name, value in vars(cls).items():
            if inspect.isfunction(value) and not name.startswith("_") and name not in SLOTS and name not in LIFE:
                raise TypeError(f"{cls.__name__}.{name} is not a slot; slots are {', '.join((*LIFE, *SLOTS))}")


KINDS: dict[str, type] = {"Curate": Curate, "Shape": Shape, "Fit": Fit, "Measure": Measure, "Part": Part}
RESERVED = {"model", "data", "as", "with"}  # what a recipe's step says of its wires; no field may use these names


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def method(*, name: str, title: str, family: str, year: int, status: str, **more: Any) -> Any:
    """Make a class a method: freeze it and put its card on it. Literals only; the index reads them unrun.

    `name` is what recipes call it; `title` the name people know; `paper` (an "arXiv:..." or "doi:..." id somebody has
    seen) and `lit` (the id in the literature index) where they exist; `tier` is core, llm or modality;
    `status` is draft, stable or deprecated.
    """

    def make(cls: type) -> type:
        cls.card = {"name": name, "title": title, "family": family, "year": year, "status": status, **more}  # type: ignore[attr-defined]
        made: Any = dataclasses.dataclass(frozen=True, kw_only=True, eq=False)(cls)
        if clash := {f.name for f in dataclasses.fields(made)} & RESERVED - {"model"}:
            raise TypeError(f"{cls.__name__}: {', '.join(sorted(clash))} are words of recipes and cannot be fields")
        return made

    return make
