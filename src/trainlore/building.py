"""Methods from the words of a recipe: fields converted, `$names` put in, nested methods built."""

from __future__ import annotations

import re
from typing import Any

from trainlore.given import Noun
from trainlore.recipe import convert
from trainlore.registry import entry, load


def build(name: str, fields: dict[str, Any], nouns: dict[str, Any]) -> Any:
    """The method with its fields converted to their annotated types, `$names` to nouns and nested methods built."""
    cls, types = load(name), entry(name)["fields"]

    def resolve(value: Any, type_: str) -> Any:
        if isinstance(value, str) and value.startswith("$"):
            noun = nouns[value[1:]]
            noun = noun.get() if isinstance(noun, Noun) else noun
            return (noun,) if type_.startswith(("tuple", "list")) and not isinstance(noun, list | tuple) else noun
        if re.search(r"\b(Part|Measure|Curate|Shape|Fit)\b", type_) and value is not None:
            many = value if isinstance(value, list) else [value]
            made = tuple(build(*_named(one), nouns) for one in many)
            return made if "tuple" in type_ else made[0]
        if re.search(r"\b(Data|Model|Report)\b", type_) and isinstance(value, list):
            return tuple(resolve(v, "") if isinstance(v, str) else v for v in value)
        return convert(value, type_) if not re.search(r"\b(Data|Model|Report)\b", type_) else value

    return cls(**{k: resolve(v, types[k]["type"]) for k, v in fields.items()})


def _named(one: Any) -> tuple[str, dict[str, Any]]:
    if isinstance(one, str):
        return one, {}
    ((name, fields),) = one.items()
    return name, fields or {}
