"""A recipe is a list of steps that name what they take and what they give. Wrong ones fail here, all errors at once, unrun."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from trainlore.errors import Bad
from trainlore.registry import index, near
from trainlore.sources import noun_of
from trainlore.units import AMOUNT, amount

GIVES = {"Curate": "Data", "Shape": "Model", "Fit": "Model", "Measure": "Report"}
TAKES = {"Curate": ("data",), "Shape": ("model",), "Fit": ("model", "data"), "Measure": ("model", "data")}
TRAIN = {  # the engine's own step: its fields and their types; see trainlore.loop.fit
    "steps": "int | None",
    "epochs": "float | None",
    "tokens": "int | float | str | None",
    "rows": "int | float | str | None",
    "seconds": "float | str | None",
    "work": "float | str | None",
    "batch_size": "int",
    "micro_batch": "int | None",
    "lr": "float",
    "weight_decay": "float",
    "precision": "str",
    "device": "str",
    "compile": "str",
    "shard": "bool",
    "checkpoint_activations": "bool",
    "workers": "int | None",
    "spikes": "str",
    "truncate": "bool",
}
BUDGETS = ("steps", "epochs", "tokens", "rows", "seconds", "work")
PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "tuple": tuple, "list": list, "dict": dict, "None": None}


class Spec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it is written."""

    steps: list[dict[str, dict[str, Any] | None]]
    name: str = "recipe"
    seed: int = 0
    given: dict[str, Any] = {}


class Step(msgspec.Struct, frozen=True):
    """One step, bound: what it runs, on what, and under which name the result is known."""

    where: str
    name: str
    kind: str
    fields: dict[str, Any]
    wires: dict[str, str]  # model, data -> the noun's name
    parts: list[tuple[str, dict[str, Any]]]
    gives: str
    last: frozenset[str] = frozenset()  # nouns no later step asks for: they are moved, not copied


class Recipe(msgspec.Struct, frozen=True):
    """A checked recipe, ready to run."""

    spec: Spec
    steps: list[Step]
    text: str


def read(source: str | Path | dict, overrides: list[str] | None = None) -> Recipe:
    """Read a recipe file (or mapping), apply `steps.3.keep=0.2` overrides, and plan it. Raises Bad with every error."""
    spec, text = parsed(source, Spec, "recipe", overrides, _override)
    return Recipe(spec, plan(spec), text)


def parsed(
    source: str | Path | dict, form: Any, what: str, overrides: list[str] | None, override: Callable[[Any, str], None]
) -> tuple[Any, str]:
    """A YAML file (or mapping) with its overrides as a struct of this form, and as text. Raises Bad where it is none."""
    import yaml

    if isinstance(source, dict):
        raw: Any = copy.deepcopy(source)  # overrides write into it
    else:
        path = Path(source)
        if not path.is_file():
            raise Bad(f"no {what} {source}")
        try:
            raw = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise Bad(f"{source} is not YAML: {' '.join(str(error).split())}") from None
    for change in overrides or []:
        override(raw, change)
    try:
        spec = msgspec.convert(raw, form)
    except msgspec.ValidationError as error:
        known = f"; a {what} has {', '.join(form.__struct_fields__)}" if "unknown field" in str(error) else ""
        raise Bad(f"not a {what}: {error}{known}") from None
    return spec, yaml.safe_dump(raw, sort_keys=False, allow_unicode=True)


def _override(raw: Any, text: str) -> None:
    import yaml

    path, mark, value = text.partition("=")
    keys = path.split(".")
    if (
        not mark
        or keys[0] not in ("name", "seed", "given", "steps")
        or (len(keys) < 2 and keys[0] in ("given", "steps"))
    ):
        raise Bad(
            f"cannot set {text!r}: write seed=1, given.pool=my.jsonl or steps.3.keep=0.2 (a step's number or name)"
        )
    here = raw
    for at, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            here = _pick(here, key, text)
            if at == 1:  # a step: go into its body
                (name,) = here
                here[name] = here[name] or {}
                here = here[name]
                continue
        elif key not in here:
            raise Bad(f"cannot set {text!r}: there is no {key!r}" + near(key, here))
        else:
            here = here[key]
    if isinstance(here, dict) and len(keys) > 2 and keys[-2] in here and isinstance(here[keys[-2]], dict):
        here = here[keys[-2]]
    here[keys[-1]] = yaml.safe_load(value)


def _pick(steps: list, key: str, text: str) -> Any:
    if key.isdigit() and 1 <= int(key) <= len(steps):
        return steps[int(key) - 1]
    named = [
        s for s in steps if isinstance(s, dict) and any(n == key or (b or {}).get("as") == key for n, b in s.items())
    ]
    if len(named) != 1:
        raise Bad(
            f"cannot set {text!r}: {'no step' if not named else 'more than one step'} is called {key!r}; there are {len(steps)} steps"
        )
    return named[0]


# ---- the plan


def plan(spec: Spec) -> list[Step]:
    """Bind and check every name, field and noun from the index alone: no method is imported."""
    wrong: list[str] = []
    known: dict[str, str] = {}
    for name, source in spec.given.items():
        try:
            known[name] = noun_of(source)
        except Bad as error:
            wrong.append(f"given {name}: {error}")
            known[name] = "?"
    steps = []
    for number, one in enumerate(spec.steps, 1):
        if len(one) != 1:
            wrong.append(f"step {number}: a step is one method with its fields, not {', '.join(one) or 'nothing'}")
            continue
        ((name, body),) = one.items()
        step, errors = _bind(f"step {number} ({name})", name, dict(body or {}), known)
        wrong += [f"{f'step {number} ({name})'}: {e}" for e in errors]
        known[step.gives] = GIVES.get(step.kind, "?")
        steps.append(step)
    if not spec.steps:
        wrong.append("a recipe needs at least one step")
    if wrong:
        raise Bad(wrong[0] if len(wrong) == 1 else f"{len(wrong)} errors:\n" + "\n".join(f"  - {w}" for w in wrong))
    later: set[str] = set()
    for at in reversed(range(len(steps))):
        uses = refs(steps[at].fields) | refs([f for _, f in steps[at].parts]) | set(steps[at].wires.values())
        steps[at] = msgspec.structs.replace(steps[at], last=frozenset(uses - later))
        later |= uses
    return steps


def _bind(where: str, name: str, body: dict[str, Any], known: dict[str, str]) -> tuple[Step, list[str]]:
    wrong: list[str] = []
    kind = "Fit" if name == "train" else "Save" if name == "save" else index()[name]["kind"] if name in index() else "?"
    if kind == "?":
        wrong.append(f"no method {name!r}" + near(name, (*index(), "train", "save")))
    if kind == "Part":
        wrong.append(f"{name} is a part of a training loop: list it under `with` of a train step")
    takes = ("model",) if kind == "Save" else TAKES.get(kind, ())
    gives = body.pop("as", None) or name
    if not isinstance(gives, str) or not re.fullmatch(r"[A-Za-z_]\w*", gives):
        wrong.append(f"`as` must be a word, not {gives!r}")
    parts_raw = body.pop("with", None) or []
    wires = {}
    for wire in takes:
        value = body.pop(wire, None)
        wanted = wire.capitalize()
        if value is None:
            wrong.append(f"say `{wire}: $name`" + _there(known, wanted))
        elif not isinstance(value, str) or not value.startswith("$"):
            wrong.append(
                f"`{wire}` names a noun, like ${next((k for k, v in known.items() if v == wanted), 'pool')}, not {value!r}"
            )
        elif (error := _ref(value[1:], wanted, known)) is not None:
            wrong.append(error)
        else:
            wires[wire] = value[1:]
    if name == "train":
        wrong += _train(body)
    elif name == "save":
        wrong += [f"no field {k!r}; it has to" for k in body if k != "to"]
    elif name in index() and kind != "Part":
        wrong += _fields(name, body, known)
    parts: list[tuple[str, dict[str, Any]]] = []
    if parts_raw and name != "train":
        wrong.append("only a train step takes parts under `with`")
    elif not isinstance(parts_raw, list):
        wrong.append("`with` is a list of parts: with: [{ema: {decay: 0.99}}]")
    else:
        for one in parts_raw:
            method, fields, errors = _method(one, ("Part",), known)
            wrong += [f"with {method}: {e}" for e in errors]
            parts.append((method, fields))
    return Step(where, name, kind, body, wires, parts, str(gives)), wrong


def _method(one: Any, kinds: tuple[str, ...], known: dict[str, str]) -> tuple[str, dict[str, Any], list[str]]:
    """A method given inside a step: its name, fields and errors."""
    if isinstance(one, str):
        one = {one: None}
    if not isinstance(one, dict) or len(one) != 1:
        return "?", {}, [f"write {{name: {{field: value}}}}, not {one!r}"]
    ((name, fields),) = one.items()
    fields = dict(fields or {})
    if name not in index():
        return name, fields, [f"no method {name!r}" + near(name, index())]
    if index()[name]["kind"] not in kinds:
        return name, fields, [f"{name} is a {index()[name]['kind']}, not a {' or '.join(kinds)}"]
    return name, fields, _fields(name, fields, known)


def _fields(name: str, body: dict[str, Any], known: dict[str, str]) -> list[str]:
    has, wrong = index()[name]["fields"], []
    for key in body:
        if key not in has:
            wrong.append(f"no field {key!r}" + (near(key, has) or f"; it has {', '.join(has)}"))
    for key, field in has.items():
        if field["default"] is None and key not in body:
            wrong.append(f"{key} must be given ({field['type']})")
    for key in [k for k in body if k in has]:
        wrong += [f"{key}: {e}" for e in _value(has[key]["type"], body[key], known)]
    return wrong


def _value(type_: str, value: Any, known: dict[str, str]) -> list[str]:
    """Errors of one field's value: nouns by kind, methods by verb, everything else by its plain type."""
    words = set(re.findall(r"\w+", type_))
    if verbs := tuple(words & {"Part", "Measure", "Curate", "Shape", "Fit"}):
        many = value if isinstance(value, list) else [value]
        return [f"{m}: {e}" for one in many for m, _, errors in [_method(one, verbs, known)] for e in errors]
    if nouns := words & {"Data", "Model", "Report"}:
        many = value if isinstance(value, list) else [value]
        wrong = []
        for one in many:
            if isinstance(one, str) and one.startswith("$"):
                if (error := _ref(one[1:], " or ".join(sorted(nouns)), known)) is not None:
                    wrong.append(error)
            elif one is not None and not words & {"str", "float", "int"}:
                wrong.append(f"names a noun ({' or '.join(sorted(nouns))}), like $name, not {one!r}")
        return wrong
    if lost := refs(value):
        return [f"${', $'.join(sorted(lost))} is a noun, but the field holds {type_}"]
    try:
        convert(value, type_)
    except (msgspec.ValidationError, ValueError) as error:
        return [f"{error} (field type: {type_})"]
    return []


def convert(value: Any, type_: str) -> Any:
    """A YAML value as the field's type; types this module does not know are left alone."""
    import typing

    try:
        made = eval(
            type_, {"__builtins__": {}}, {**PLAIN, "Literal": typing.Literal, "Any": typing.Any}
        )  # ours, from the index
    except (NameError, TypeError, SyntaxError):
        return value
    if isinstance(value, str) and AMOUNT.fullmatch(value) and re.search(r"\b(int|float)\b", type_):
        number = amount(value)
        value = int(number) if number.is_integer() else number
    return msgspec.convert(value, made)


def _train(body: dict[str, Any]) -> list[str]:
    wrong = [f"no field {k!r}" + (near(k, TRAIN) or f"; train has {', '.join(TRAIN)}") for k in body if k not in TRAIN]
    budgets = [b for b in BUDGETS if b in body]
    if len(budgets) != 1:
        wrong.append(f"give one budget of {', '.join(BUDGETS)}" + (f", not {' and '.join(budgets)}" if budgets else ""))
    return wrong + [f"{k}: {e}" for k in body if k in TRAIN for e in _value(TRAIN[k], body[k], {})]


def _ref(name: str, wanted: str, known: dict[str, str]) -> str | None:
    if name not in known:
        return f"nothing is called ${name}" + (near(name, known) or _there(known, None))
    if known[name] not in wanted and known[name] != "?":
        return f"${name} is a {known[name]}, not a {wanted}" + _there(known, wanted)
    return None


def _there(known: dict[str, str], wanted: str | None) -> str:
    names = [f"${k}" for k, v in known.items() if wanted is None or v == wanted]
    return f"; there is {', '.join(names)}" if names else "; there is none yet"


def refs(value: Any) -> set[str]:
    """The names of all nouns a value speaks of."""
    if isinstance(value, str):
        return {value[1:]} if value.startswith("$") else set()
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return set().union(*map(refs, inside))
