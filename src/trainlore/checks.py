"""The laws every method keeps, as a public contract: `trainlore.checks.check("dsir")`, ours or anybody's.

Each law is a function of a method's name; `LAWS` lists which hold for which kind. A part that is known to break one
says so on itself, with the reason: `known = {"resumes": "..."}`.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import json
import random
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainlore import needs
from trainlore.building import build
from trainlore.nouns import Data, Model, Report
from trainlore.registry import entry, load
from trainlore.runs import Run
from trainlore.slots import LIFE, SLOTS, Clash
from trainlore.worlds import tiny

SECTIONS = ["What it does", "Claim", "Cost", "Fields worth tuning", "Watch out", "Differs from the paper", "See also"]
MUST = ["What it does", "Claim", "Cost"]
CARD = {"name", "title", "paper", "lit", "family", "year", "tier", "status", "code"}
OURS = (
    "trainlore.primitives",
    "trainlore.nouns",
    "trainlore.verbs",
    "trainlore.runs",
    "trainlore.errors",
    "trainlore.worlds",
)
STEPS = 12


class Broken(AssertionError):
    """A method that breaks a law; the message says which and how."""


def _must(holds: Any, why: str) -> None:
    if not holds:
        raise Broken(why)


# ---- trying one


def nouns_of(name: str) -> dict[str, Any]:
    """The fresh nouns of the method's tiny world."""
    return tiny.world(load(name).tiny["world"])  # type: ignore[attr-defined]


def make(name: str, nouns: dict[str, Any], **changes: Any) -> Any:
    """The method as its `tiny` says, with these fields changed."""
    fields = {k: v for k, v in load(name).tiny.items() if k != "world"}  # type: ignore[attr-defined]
    return build(name, {**fields, **changes}, nouns)


def fitted(name: str, *parts: Any, nouns: dict[str, Any], seed: int = 3, **how: Any) -> tuple[Model, Run]:
    """A short training in the method's tiny world with these parts."""
    run = Run(seed)
    how = {"steps": STEPS, **tiny.HOW[load(name).tiny["world"]], **how}  # type: ignore[attr-defined]
    return run.fit(nouns["model"], nouns["data"], *parts, **how), run


def ran(name: str, seed: int = 3, **changes: Any) -> tuple[Any, Run, dict[str, Any]]:
    """The result of the step on its tiny world."""
    nouns, run = nouns_of(name), Run(seed)
    method = make(name, nouns, **changes)
    main = {"Curate": ("data",), "Shape": ("model",)}.get(entry(name)["kind"], ("model", "data"))
    return run.step(method, *(nouns[m] for m in main)), run, nouns


def fingerprint(noun: Any) -> str:
    """The content of any noun."""
    if isinstance(noun, Report):
        return repr(
            [(m.metric, m.values.tobytes(), json.dumps(m.notes, sort_keys=True, default=str)) for m in noun.measured]
        )
    return str(noun.fingerprint) if isinstance(noun, Data | Model) else repr(noun)


# ---- laws of every method


def card_is_complete(name: str) -> None:
    """Card keys known, first line an imperative sentence, sections known and in order, every field explained and read."""
    e, cls = entry(name), load(name)
    _must(not set(e["card"]) - CARD, f"{name}: unknown card keys {set(e['card']) - CARD}")
    _must(e["card"]["status"] in ("draft", "stable", "deprecated"), f"{name}: status is draft, stable or deprecated")
    _must(e["card"].get("tier") in ("core", "llm", "modality"), f"{name}: tier is core, llm or modality")
    first = e["summary"]
    _must(
        re.fullmatch(r"[A-Z][a-z-]+ .*\.", first),
        f"{name}: the first line must be one imperative sentence, not {first!r}",
    )
    _must(
        not first.split()[0].endswith(("s", "ing")) or first.split()[0] in ("Pass", "Compress", "Process"),
        f"{name}: {first.split()[0]!r} is no imperative",
    )
    heads = re.findall(r"^## (.+)$", e["doc"], re.M)
    _must(
        all(h in SECTIONS for h in heads),
        f"{name}: sections are {SECTIONS}, not {[h for h in heads if h not in SECTIONS]}",
    )
    _must(heads == sorted(heads, key=SECTIONS.index), f"{name}: sections out of order: {heads}")
    _must(not (lost := [h for h in MUST if h not in heads]), f"{name}: no section {lost}")
    module = inspect.getsource(importlib.import_module(cls.__module__))
    node = next(n for n in ast.parse(module).body if isinstance(n, ast.ClassDef) and n.name == cls.__name__)
    read = {
        n.attr
        for n in ast.walk(node)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id in ("self", "method")
    }
    for field, what in e["fields"].items():
        _must(what["doc"], f"{name}.{field} has no line that says what it is")
        _must(field in read or field == "tolerance", f"{name}.{field} is read by nobody")


def is_frozen(name: str) -> None:
    """A method never changes."""
    _must(load(name).__dataclass_params__.frozen, f"{name} is not frozen")  # type: ignore[attr-defined]


def defaults_are_plain(name: str) -> None:
    """Every default survives JSON, so that recipes and results can hold it."""
    for f in dataclasses.fields(load(name)):
        if f.default is not dataclasses.MISSING:
            value = f.default
            back = json.loads(json.dumps(value))
            _must(back == value or tuple(back) == value, f"{name}.{f.name}: {value!r} does not survive JSON")


def imports_only_what_it_may(name: str) -> None:
    """A method stands on primitives, nouns, verbs and runs; never on another method or on the engine."""
    tree = ast.parse(inspect.getsource(importlib.import_module(load(name).__module__)))
    for node in ast.walk(tree):
        for module in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else []
        ):
            if module.split(".")[0] == "trainlore":
                _must(module.startswith(OURS), f"{name} imports {module}")


def is_tried(name: str) -> None:
    """It says how it is tried."""
    _must(isinstance(load(name).tiny, dict) and load(name).tiny.get("world") in tiny.NAMES, f"{name} has no tiny world")  # type: ignore[attr-defined]


def ranges_hold_the_defaults(name: str) -> None:
    """What tuning may try are values of its fields, and the default is among them."""
    fields, ranges = entry(name)["fields"], getattr(load(name), "ranges", {})
    for field, said in ranges.items():
        _must(field in fields, f"{name} has no field {field!r} to tune")
        default = getattr(load(name), field)
        between = isinstance(said[0], int | float) and len(said) == 2 + (said[-1] == "log")
        _must(
            said[0] <= default <= said[1] if between else default in said, f"{name}: {field}={default} is not in {said}"
        )


def says_what_memory_it_needs(name: str) -> None:
    """What it says it needs of memory is a number of bytes that grows with the rows."""
    if "needs_memory" not in entry(name):
        return
    fields = {k: nouns_of(name)["data"] for k, f in entry(name)["fields"].items() if "Data" in f["type"]}
    few, many = (needs.bytes_of(name, rows, 64, fields) or 0 for rows in (1000, 1_000_000))
    _must(0 < few < many, f"{name}: needs_memory gives {few} bytes for 1,000 rows and {many} for a million")


def is_deterministic(name: str) -> None:
    """Twice the same seed, twice the same bits; the global random streams are left as they were; nothing given is changed."""
    found = []
    for again in (False, True):  # the streams are watched the second time: the first imports things, which may draw
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr]
        if entry(name)["kind"] == "Part":
            nouns = nouns_of(name)
            part = make(name, nouns)
            kept = {k: fingerprint(v) for k, v in nouns.items() if k != "model"}
            result, _run = fitted(name, part, nouns=nouns)
        else:
            nouns = nouns_of(name)
            kept = {k: fingerprint(v) for k, v in nouns.items() if k != "model"}
            method, run = make(name, nouns), Run(3)
            main = {"Curate": ("data",), "Shape": ("model",)}.get(entry(name)["kind"], ("model", "data"))
            result = run.step(method, *(nouns[m] for m in main))
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[union-attr]
        _must(before == after or not again, f"{name} moved a global random stream")
        changed = [k for k, v in kept.items() if fingerprint(nouns[k]) != v]
        _must(not changed, f"{name} changed what it was given: {', '.join(changed)}")
        found.append(fingerprint(result))
    _must(found[0] == found[1], f"{name} gave two results for one seed")


# ---- laws of parts


def methods_are_slots(name: str) -> None:
    """Every public method is a slot."""
    _must(set(entry(name)["slots"]) <= set(SLOTS) | set(LIFE), f"{name}: {entry(name)['slots']}")


def acts(name: str) -> None:
    """In its tiny world it does something: its effects are not all zero."""
    nouns = nouns_of(name)
    _, run = fitted(name, make(name, nouns), nouns=nouns)
    _must(not run.effects[-1]["dead"], f"{name} did nothing: {run.effects[-1]}")


def null_is_nothing(name: str, **how: Any) -> None:
    """At its null it changes no bit of the training."""
    null = load(name).null  # type: ignore[attr-defined]
    if null is None:
        return
    nouns = nouns_of(name)
    with_null, _ = fitted(name, make(name, nouns, **null), nouns=nouns, **how)
    without, _ = fitted(name, nouns=nouns_of(name), **how)
    _must(fingerprint(with_null) == fingerprint(without), f"{name} at its null {null} changes the training")


def resumes(name: str, **how: Any) -> None:
    """Stopped and gone on with, it ends with the same bits as never stopped."""
    nouns = nouns_of(name)
    whole, _ = fitted(name, make(name, nouns), nouns=nouns, **how)
    with tempfile.TemporaryDirectory() as folder:
        for until in (5, None):
            nouns = nouns_of(name)
            part_way, _ = fitted(name, make(name, nouns), nouns=nouns, until=until, folder=Path(folder), **how)
    _must(fingerprint(part_way) == fingerprint(whole), f"{name} does not resume to the same bits")


def needs_are_checked(name: str) -> None:
    """A column it needs and does not find is a Clash before anything runs."""
    nouns = nouns_of(name)
    for column in load(name).needs:  # type: ignore[attr-defined]
        source = "label" if column == "labels" and "label" in nouns["data"].columns else column
        if source in nouns["data"].columns and source not in ("input_ids", "chosen_input_ids", nouns["model"].input):
            try:
                fitted(name, make(name, nouns), nouns={**nouns, "data": nouns["data"].without(source)}, steps=1)
            except Clash:
                continue
            except ValueError as error:
                _must(column in str(error) or source in str(error), f"{name} without {column}: {error}")
                continue
            raise Broken(f"{name} needs {column} and ran without it")


def one_row_is_finite(name: str) -> None:
    """A batch of one row trains to finite weights."""
    nouns = nouns_of(name)
    model, _ = fitted(name, make(name, nouns), nouns=nouns, batch_size=1, steps=3)
    _must(
        all(v.isfinite().all() for v in model.net.state_dict().values() if v.is_floating_point()),
        f"{name}: one row a batch is not finite",
    )


def micro_batches_agree(name: str) -> None:
    """Split into pieces, a step gives the same weights to float tolerance (a batch-wide loss refuses)."""
    if not load(name).rowwise:  # type: ignore[attr-defined]
        return
    found = []
    for micro in (None, 4):
        nouns = nouns_of(name)
        model, _ = fitted(name, make(name, nouns), nouns=nouns, steps=2, batch_size=8, micro_batch=micro, lr=1e-3)
        found.append({k: v for k, v in model.net.state_dict().items() if v.is_floating_point()})
    worst = max(float((found[0][k] - found[1][k]).abs().max()) for k in found[0])
    _must(worst < 2e-3, f"{name}: micro-batches move the weights by {worst:.2g}")


# ---- laws of steps


def noun_in_noun_out(name: str) -> None:
    """It gives the noun its verb promises, and a Curate says where every row came from."""
    result, _, nouns = ran(name)
    kind = entry(name)["kind"]
    wanted = {"Curate": Data, "Measure": Report}.get(kind, Model)
    _must(isinstance(result, wanted), f"{name} gave {type(result).__name__}")
    if isinstance(result, Data):
        _must(len(result), f"{name} left no row")
        traced = set(result.ids.tolist()) <= set(nouns["data"].ids.tolist()) or "parents" in result.columns
        _must(traced, f"{name}: rows cannot be traced to those they came from")
    if isinstance(result, Report):
        _must(all(m.values.ndim == 1 and len(m.values) for m in result.measured), f"{name}: a metric has no values")
        _must(
            all(m.better in ("higher", "lower", "") for m in result.measured),
            f"{name}: better is higher, lower or nothing",
        )
        json.dumps(result.summary())


def keeps_outputs(name: str) -> None:
    """A Shape that only reparametrizes gives the same outputs."""
    if not getattr(load(name), "keeps", False):
        return
    from trainlore.steps import SAME, distance

    nouns = nouns_of(name)
    batch = nouns["data"].batch(range(8), nouns["model"])
    with torch.no_grad():
        before = nouns["model"](batch)
        after = Run(3).step(make(name, nouns), nouns["model"])(batch)
    _must(distance(before, after) <= SAME, f"{name} moves the outputs by {distance(before, after):.2g}")


def is_charged(name: str) -> None:
    """If it ran a network, the meter says so."""
    if entry(name)["kind"] in ("Fit", "Measure"):
        _, run, _ = ran(name)
        _must(run.meter.work > 0, f"{name} ran for free")


def none_of_the_rows_is_said(name: str) -> None:
    """Given no rows it says so, in words."""
    if entry(name)["kind"] == "Shape":
        return
    nouns = nouns_of(name)
    empty = nouns["data"].take([])
    main = (empty,) if entry(name)["kind"] == "Curate" else (nouns["model"], empty)
    try:
        Run(3).step(make(name, nouns), *main)
    except ValueError as error:
        _must(re.search(r"row|empty|data", str(error)), f"{name} on no rows: {error}")
        return
    raise Broken(f"{name} took no rows without a word")


EVERY: list[Callable[[str], None]] = [
    card_is_complete,
    is_frozen,
    defaults_are_plain,
    imports_only_what_it_may,
    is_tried,
    ranges_hold_the_defaults,
    says_what_memory_it_needs,
    is_deterministic,
]
PARTS: list[Callable[[str], None]] = [
    methods_are_slots,
    acts,
    null_is_nothing,
    resumes,
    needs_are_checked,
    one_row_is_finite,
    micro_batches_agree,
]
STEPPED: list[Callable[[str], None]] = [noun_in_noun_out, keeps_outputs, is_charged, none_of_the_rows_is_said]


def laws(name: str) -> list[Callable[[str], None]]:
    """The laws that hold for this method."""
    return EVERY + (PARTS if entry(name)["kind"] == "Part" else STEPPED)


def check(name: str) -> list[str]:
    """Try every law on one method of the index; give what is broken, known exceptions left out."""
    broken = []
    for law in laws(name):
        if law.__name__ in getattr(load(name), "known", {}):
            continue
        try:
            law(name)
        except Exception as error:
            broken.append(f"{law.__name__}: {type(error).__name__}: {error}")
    return broken
