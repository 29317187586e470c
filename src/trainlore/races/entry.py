"""A race from a few words: these methods, this data, this budget. Everything that is not said is made equal for all."""

from __future__ import annotations

import re
from typing import Any

from trainlore.errors import Bad
from trainlore.races.spec import budget_of
from trainlore.recipe import refs
from trainlore.registry import entry, index, near
from trainlore.sources import noun_of

BASELINES = {  # the trivial way of each family: what everything in it has to beat
    "data/select": "random_rows",
    "data/mix": "uniform_mixture",
    "compress/quantize": "nearest",
    "compress/prune": "magnitude",
}
METRICS = {"loss": "held_out_loss"}  # names people use
COMPRESS = "compress/"


def methods_of(arms: list[str], family: str | None) -> tuple[list[str], str]:
    """The methods that are to race, and the kind they share."""
    known = index()
    if family:
        inside = [
            n for n, e in known.items() if e["card"]["family"] == family or e["card"]["family"].startswith(family + "/")
        ]
        if not inside:
            families = sorted({e["card"]["family"] for e in known.values()})
            raise Bad(f"no family {family!r}" + (near(family, families) or f"; families are {', '.join(families)}"))
        arms = [*arms, *sorted(n for n in inside if n not in arms)]
    found = []
    for name in arms:
        name = name.strip().replace("-", "_")
        if name not in known:
            raise Bad(f"no method {name!r}" + near(name, known))
        if name not in found:
            found.append(name)
    if not found:
        raise Bad("name the arms of the race: --arms dsir,random_rows or --family data/select")
    kinds = {_group(n) for n in found}
    if len(kinds) > 1 and family is None:
        said = ", ".join(f"{n} is a {entry(n)['kind']}" for n in found)
        raise Bad(f"arms of one race do the same kind of thing: {said}; race whole recipes with --race FILE")
    kind = _group(found[0]) if family is None else max(kinds, key=lambda k: sum(_group(n) == k for n in found))
    if kind == "Measure":
        raise Bad(f"{found[0]} measures and changes nothing: it can be the metric of a race, not an arm")
    return found, kind


def _group(name: str) -> str:
    e = entry(name)
    return "Compress" if e["card"]["family"].startswith(COMPRESS) and e["kind"] in ("Shape", "Fit") else str(e["kind"])


def make(
    arms: list[str],
    data: Any,
    target: Any = None,
    test: Any = None,
    model: Any = None,
    budget: str = "300-steps",
    metric: str | None = None,
    seeds: int = 5,
    family: str | None = None,
    given: dict[str, Any] | None = None,
    fields: dict[str, dict[str, Any]] | None = None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """The race as a mapping that `spec.read` takes, and for every method left out the reason.

    data: the pool, or the training rows; target: rows of the kind that is wanted; test: rows the verdict is spoken on,
    else a part of the target's or the data's own, which nothing else sees. `given`: further nouns by name (teacher, prior,
    ...), which fields of the same name take. `fields`: {method: {field: value}}.
    """
    names, kind = methods_of(arms, family)
    fields, given = fields or {}, dict(given or {})
    if lost := [m for m in fields if m not in names]:
        raise Bad(f"--set {lost[0]}: no such arm" + (near(lost[0], names) or f"; arms are {', '.join(names)}"))
    columns = _columns(data)
    form = _form(columns)
    unit, amount = budget_of(budget)
    raw: dict[str, Any] = {"name": f"{' against '.join(names[:3])}{' and others' if len(names) > 3 else ''}"}
    raw |= {
        "question": f"Which {kind.lower() if kind != 'Part' else 'part'} is worth it here?",
        "seeds": seeds,
        "budget": budget,
    }
    nouns: dict[str, Any] = {**given, **_rows(data, target, test, kind)}
    measure = METRICS.get(metric or "", metric) or ("held_out_loss" if form == "text" else "accuracy")
    prepare, begin, start = _model(model, form, data, nouns)
    train = {"train": {"model": "$start", "data": "$train", **_training(form), "as": "trained"}}
    end = "trained"
    then: list[dict[str, Any]] = []
    made: dict[str, Any] = {}
    left: dict[str, str] = {}
    baseline = ""
    rival = BASELINES.get(family or entry(names[0])["card"]["family"], "")
    if rival and rival not in names:
        names = [rival, *names]
    if kind == "Curate":
        then = [*begin, _over(train, data="$chosen", model=start)]
        made["all rows"] = {"use": {"chosen": "pool"}}
        baseline = rival or "all rows"
    elif kind == "Part":
        then = [*begin, _over(train, data="$pool", model=start)]
        made["plain"] = []
        baseline = "plain"
    elif kind == "Shape":
        then = [_over(train, data="$pool", model="$shaped")]
        made["plain"] = [*_as(begin, start, "shaped")] if begin else {"use": {"shaped": start.removeprefix("$")}}
        baseline = "plain"
    elif kind == "Fit":
        made["plain"] = [*begin, _over(train, data="$pool", model=start)]
        baseline = "plain"
    else:  # compress: one model is trained once, and every arm makes it smaller
        prepare = [
            *prepare,
            *begin,
            _over(train, data="$pool", model=start, **{unit: _whole(unit, amount)}, **{"as": "whole"}),
        ]
        made["uncompressed"] = {"use": {"small": "whole"}}
        baseline, end = rival or "uncompressed", "small"
    told = set(nouns) | {"pool"}
    for name in names:
        reason, body = _fill(name, kind, told, fields.get(name, {}), unit, amount, form)
        if reason:
            left[name] = reason
            continue
        if kind == "Curate":
            made[name] = [{name: {"data": "$pool", **body, "as": "chosen"}}]
        elif kind == "Part":
            made[name] = {"with": [{name: body}]}
        elif kind == "Shape":
            made[name] = [*begin, {name: {"model": start, **body, "as": "shaped"}}]
        elif kind == "Fit":
            made[name] = [*begin, {name: {"model": start, "data": "$pool", **body, "as": "trained"}}]
        else:
            wires = {"model": "$whole"} | ({"data": "$pool"} if entry(name)["kind"] == "Fit" else {})
            made[name] = [{name: {**wires, **body, "as": "small"}}]
    if baseline not in made:
        raise Bad(f"the baseline {baseline} cannot run: {left.get(baseline, '')}")
    if len(made) < 2:
        raise Bad("no arm can run: " + "; ".join(f"{n} {why}" for n, why in left.items()))
    rest = [n for n in made if n != baseline]
    arms_made = {n: made[n] for n in (baseline, *rest)}
    exam = {"model": f"${end}"}
    valid = {measure: {**exam, "data": "$valid"}} if kind != "Compress" else {}
    whole = {
        "prepare": prepare,
        "arms": arms_made,
        "then": then,
        "valid": valid,
        "test": {measure: {**exam, "data": "$test"}},
    }
    used = refs([whole]) | {n for a in arms_made.values() if isinstance(a, dict) for n in a.get("use", {}).values()}
    raw |= {"baseline": baseline, "given": {k: v for k, v in nouns.items() if k in used}, **whole}
    if kind != "Compress":
        lr = train["train"]["lr"]
        raw["tune"] = {"train.lr": [lr / 5, lr * 5, "log"]}
    return raw, left


def _over(step: dict[str, Any], **more: Any) -> dict[str, Any]:
    ((name, body),) = step.items()
    return {name: {**body, **more}}


def _as(steps: list[dict[str, Any]], old: str, new: str) -> list[dict[str, Any]]:
    """The steps with what they give under another name."""
    return [{n: {**b, "as": new if f"${b.get('as')}" == old else b.get("as")}} for s in steps for n, b in s.items()]


def _whole(unit: str, amount: float) -> Any:
    return amount if unit in ("epochs", "seconds", "work") else int(amount)


def _rows(data: Any, target: Any, test: Any, kind: str) -> dict[str, Any]:
    """Pool, target, valid and test, no row in two of them."""
    wanted = target if target is not None else None
    if kind == "Curate" and wanted is not None:
        if test is not None:
            return {"pool": data, "target": _part(wanted, 0, 0.8), "valid": _part(wanted, 0.8, 1), "test": test}
        return {
            "pool": data,
            "target": _part(wanted, 0, 0.5),
            "valid": _part(wanted, 0.5, 0.65),
            "test": _part(wanted, 0.65, 1),
        }
    more = {} if wanted is None else {"target": wanted}
    if test is not None:
        return {"pool": _part(data, 0, 0.9), "valid": _part(data, 0.9, 1), "test": test, **more}
    return {"pool": _part(data, 0, 0.7), "valid": _part(data, 0.7, 0.8), "test": _part(data, 0.8, 1), **more}


def _part(source: Any, low: float, high: float) -> dict[str, Any]:
    body = dict(source) if isinstance(source, dict) else {"data": source}
    return {**body, "share": [low, high]}


def _columns(source: Any) -> list[str]:
    from trainlore.nouns import Data

    if noun_of(source) != "Data":
        raise Bad(f"--data {source}: that is a model; the data of a race are rows")
    return Data.of(source["data"] if isinstance(source, dict) else source).columns


def _form(columns: list[str]) -> str:
    """What a model of these rows is: "text" is written, "sentences" are classified, "features" are."""
    if "features" in columns:
        return "features"
    if "text" in columns and "label" in columns:
        return "sentences"
    if {"text", "prompt", "messages", "input_ids"} & set(columns):
        return "text"
    raise Bad(
        f"no race is known for rows of {', '.join(columns)}: name the columns text, prompt and completion, or features and label"
    )


def _training(form: str) -> dict[str, Any]:
    """The training every arm gets, where it is not said."""
    if form == "features":
        return {"batch_size": 32, "lr": 1e-2, "precision": "fp32"}
    return {"batch_size": 16, "lr": 3e-3 if form == "text" else 1e-3, "truncate": True}


def _model(model: Any, form: str, data: Any, nouns: dict[str, Any]) -> tuple[list, list, str]:
    """Steps done once, steps of every heat, and the name of the model a training starts from.

    A preset is a fresh model for each seed; a folder is the same model for all.
    """
    from trainlore.nouns import Data
    from trainlore.sources import PRESETS

    if (
        model is not None
        and str(model if not isinstance(model, dict) else model.get("model")).removeprefix("preset:") not in PRESETS
    ):
        nouns["base"] = model
        return [], [], "$base"
    rows = Data.of(data["data"] if isinstance(data, dict) else data)
    if form == "features":
        classes = int(rows["label"].max()) + 1 if "label" in rows.columns else 10
        said = model if isinstance(model, dict) else {"model": model or "mlp"}
        nouns["base"] = {"inputs": int(rows["features"].shape[-1]), "classes": classes, **said}
        return [], [], "$base"
    said = dict(model) if isinstance(model, dict) else {"model": model or ("llama-1m" if form == "text" else "bert-4m")}
    if form == "sentences":
        said.setdefault("labels", int(rows["label"].max()) + 1)
    nouns["base"] = {"window": 256, **said}
    column = "text" if "text" in rows.columns else "prompt"
    prepare = [{"bpe": {"model": "$base", "corpus": "$pool", "vocab": 2048, "column": column, "as": "worded"}}]
    return prepare, [{"scratch": {"model": "$worded", "as": "fresh"}}], "$fresh"


def _fill(
    name: str, kind: str, told: set[str], said: dict[str, Any], unit: str, amount: float, form: str
) -> tuple[str, dict[str, Any]]:
    """Why the method cannot be an arm, or its fields: what was said, nouns of the same name, and the budget."""
    e = entry(name)
    if _group(name) != kind:
        return f"is a {e['kind']}, the others are not", {}
    body = dict(said)
    for field, about in e["fields"].items():
        if field in body:
            continue
        if re.search(r"\b(Data|Model|Report)\b", about["type"]) and field in told:
            body[field] = f"${field}"
        elif about["default"] is None:
            what = next((k for k in ("Data", "Model", "Report") if k in about["type"]), "")
            how = f"--given {field}=SOURCE" if what else f"--set {name}.{field}=..."
            return f"needs {f'a {what} ' if what else ''}`{field}` ({how})", {}
    if kind == "Curate" and unit == "tokens" and "tokens" in e["fields"] and "tokens" not in body:
        body["tokens"] = int(amount)
    has = {
        "text": {"input_ids", "labels", "attention_mask", "text"},
        "sentences": {"input_ids", "labels", "attention_mask", "text"},
        "features": {"features", "labels"},
    }[form]
    if lost := [c for c in (e.get("needs") or {}) if c not in has]:
        return f"needs `{lost[0]}`", {}
    return "", body
