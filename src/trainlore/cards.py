"""What a method says of itself, and what was measured here: pages for the site, the same for the terminal."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from trainlore.registry import entry, index

RESULTS = Path(__file__).parent / "_results.json"
UNTRIED = "untried"


@cache
def results() -> dict[str, dict[str, Any]]:
    """The newest measured result of every method that has one."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def verdict(name: str) -> str:
    """reproduced, not reproduced here, contradicted, or untried."""
    return str(results().get(name, {}).get("verdict", UNTRIED))


def here(name: str) -> str:
    """One sentence of what was measured: effect, interval, seeds, rival, verdict."""
    r = results().get(name)
    if r is None:
        return "untried: no result has been recorded yet."
    low, high = r["interval"]
    stale = "" if r["source"] == entry(name)["source"] else " (of an earlier version of the file)"
    work = r["work"].get("method", 0.0), r["work"].get("rival", 0.0)
    cost = f" Work: {work[0] / work[1]:.2f} times the rival's." if work[1] else ""
    return (
        f"**{r['verdict']}**{stale}: {r['quantity']} {r['mean_method']:.4g} against {r['mean_rival']:.4g} of {r['rival']} on {r['world']} "
        f"({r['better']} is better); difference {r['difference']:+.4g} [{low:+.4g}, {high:+.4g}], "
        f"{r['n']} paired seeds, p = {r['p']:.2g} by sign flips.{cost}"
    )


def paper_link(card: dict[str, Any]) -> str:
    """The paper's id as a link, if somebody has seen one."""
    paper = card.get("paper", "")
    kind, _, number = paper.partition(":")
    if kind == "arXiv":
        return f"[{paper}](https://arxiv.org/abs/{number})"
    return f"[{paper}](https://doi.org/{number})" if kind == "doi" else paper or "-"


def recipe_of(name: str) -> str:
    """The method in a recipe, as its tiny trial has it."""
    e = entry(name)
    fields = {k: v for k, v in (e.get("tiny") or {}).items() if k != "world"} if isinstance(e.get("tiny"), dict) else {}
    shown = ", ".join(f"{k}: {json.dumps(v)}" if not str(v).startswith("$") else f"{k}: {v}" for k, v in fields.items())
    if e["kind"] == "Part":
        return f"- train: {{model: $model, data: $data, steps: 100, with: [{{{name}: {{{shown}}}}}], as: trained}}"
    wires = {"Curate": "data: $data", "Shape": "model: $model"}.get(e["kind"], "model: $model, data: $data")
    return f"- {name}: {{{wires}{', ' + shown if shown else ''}, as: result}}"


def page(name: str) -> str:
    """The method's page in Markdown."""
    e = entry(name)
    card, doc = e["card"], e["doc"].split("\n", 1)
    prose = doc[1].strip() if len(doc) > 1 else ""
    claim_end = prose.find("\n## ", prose.find("## Claim") + 1)
    cut = claim_end if "## Claim" in prose and claim_end > 0 else len(prose)
    prose = f"{prose[:cut].rstrip()}\n\n## Here\n\n{here(name)}\n\n{prose[cut:].lstrip()}"
    rows = "\n".join(
        f"| `{f}` | `{d['type'].replace('|', chr(92) + '|')}` | {'required' if d['default'] is None else '`' + d['default'] + '`'} | {d['doc'].replace('|', chr(92) + '|')} |"
        for f, d in e["fields"].items()
    )
    fields = f"## Fields\n\n| field | type | default | |\n|---|---|---|---|\n{rows}\n\n" if rows else ""
    memory = ""
    if "needs_memory" in e:
        memory = f"## Memory\n\n`{e['needs_memory']}` bytes beside the data, where `width` numbers embed a row.\n\n"
    slots = f" · slots: {', '.join(f'`{s}`' for s in e['slots'])}" if e["slots"] and e["kind"] == "Part" else ""
    path = e["at"].partition(":")[0].replace(".", "/")
    cited = card.get("lit") or []
    lit = f" · literature {', '.join([cited] if isinstance(cited, str) else cited)}" if cited else ""
    return (
        f"# {card['title']}\n\n*{e['summary']}*\n\n"
        f"`{name}` · {e['kind']}{slots} · {card['family']} · {card['year']} · {paper_link(card)}{lit} · {card['status']} · **{verdict(name)}**\n\n"
        f"{_fenced(prose)}\n\n{fields}{memory}## In a recipe\n\n```yaml\n{recipe_of(name)}\n```\n\nSource: `src/{path}.py`, line {e['line']}.\n"
    )


def _fenced(prose: str) -> str:
    """Formulas are indented in docstrings; Markdown wants a blank line before such a block."""
    out: list[str] = []
    for line in prose.splitlines():
        if line.startswith("    ") and out and out[-1].strip() and not out[-1].startswith("    "):
            out.append("")
        if line.startswith("## ") and out and out[-1].strip():
            out.append("")
        out.append(line)
        if line.startswith("## "):
            out.append("")
    return "\n".join(out)


def overview() -> str:
    """The table of all methods, by family."""
    lines = ["# Methods\n"]
    for family in sorted({e["card"]["family"] for e in index().values()}):
        lines += [f"\n## {family}\n", "| method | what it does | kind | paper | here |", "|---|---|---|---|---|"]
        for name, e in sorted(index().items()):
            if e["card"]["family"] == family:
                lines.append(
                    f"| [{name}]({name}.md) | {e['summary']} | {e['kind']} | {paper_link(e['card'])} | {verdict(name)} |"
                )
    return "\n".join(lines) + "\n"
