"""What there is: `ls`, `show`, `search`, `papers`. Loads no method, and neither torch nor numpy."""

from __future__ import annotations

import json
import re
import sys
from typing import Annotated, Any

import typer

from trainlore.cli.options import AsJson
from trainlore.console import esc, say
from trainlore.errors import Bad

MARKS = {"reproduced": "[green]+[/green]", "contradicted": "[red]-[/red]", "untried": "[dim]?[/dim]"}


def ls(
    family: Annotated[str | None, typer.Option(help="Only this family: data, data/select, train/schedule, ...")] = None,
    kind: Annotated[str | None, typer.Option(help="Only Curate, Shape, Fit, Measure or Part.")] = None,
    slot: Annotated[str | None, typer.Option(help="Only parts that act in this slot of the loop.")] = None,
    verdict: Annotated[
        str | None, typer.Option(help="Only reproduced, not reproduced here, contradicted or untried.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the methods there are."""
    from trainlore import cards
    from trainlore.registry import VERBS, index

    rows = [
        {
            "name": name,
            "family": e["card"]["family"],
            "kind": e["kind"],
            "slots": e["slots"] if e["kind"] == "Part" else [],
            "verdict": cards.verdict(name),
            "summary": e["summary"],
            "year": e["card"]["year"],
        }
        for name, e in sorted(index().items(), key=lambda i: (i[1]["card"]["family"], i[0]))
    ]
    if family:
        rows = _of_family(rows, family)
    if kind:
        if kind.capitalize() not in VERBS:
            raise Bad(f"no kind {kind!r}; kinds are {', '.join(VERBS)}")
        rows = [r for r in rows if r["kind"] == kind.capitalize()]
    if verdict:
        _known("verdict", "verdicts", verdict, ("reproduced", "not reproduced here", "contradicted", cards.UNTRIED))
        rows = [r for r in rows if r["verdict"] == verdict]
    if slot:
        _known("slot", "slots", slot, sorted({s for e in index().values() if e["kind"] == "Part" for s in e["slots"]}))
        rows = [r for r in rows if slot in r["slots"]]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    width = max((len(r["name"]) for r in rows), default=0)
    before, lines = None, []
    for r in rows:
        if r["family"] != before:
            lines.append(f"\n[bold]{r['family']}[/bold]")
            before = r["family"]
        mark = MARKS.get(r["verdict"], "[yellow]~[/yellow]")
        lines.append(f"  {mark} {r['name']:<{width}}  [dim]{r['kind']:<7}[/dim] {esc(r['summary'])}")
    lines.append(
        f"\n{len(rows)} methods   [dim]here: [green]+[/green] reproduced  [yellow]~[/yellow] not reproduced  [red]-[/red] contradicted  ? untried[/dim]"
    )
    say("\n".join(lines))


def show(name: Annotated[str, typer.Argument(help="The name of a method.")], as_json: AsJson = False) -> None:
    """Show a method's card: what it does, its formula, its fields, what was measured here."""
    from trainlore import cards
    from trainlore.registry import entry

    if as_json:
        print(json.dumps({"name": name, **entry(name), "result": cards.results().get(name)}, indent=1))
        return
    e = entry(name)  # says what is near, where there is no such method
    text = re.sub(r"\n{3,}", "\n\n", cards.page(name)) + _on_files(name, e)
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))
    else:
        print(text)


def _on_files(name: str, e: dict[str, Any]) -> str:
    """The command that runs a step on files of one's own; nothing for what runs only inside a training."""
    if e["kind"] == "Part":
        return ""
    from trainlore.recipe import GIVES, TAKES

    said = {"data": "--data ROWS.jsonl", "model": "--model MODEL"}
    words = [f"trainlore do {name}", *(said[wire] for wire in TAKES[e["kind"]])]
    for field, about in e["fields"].items():
        if about["default"] is None:
            kinds = {"Data": "MORE.jsonl", "Model": "MODEL", "tuple": "'[...]'", "list": "'[...]'"}
            words.append(f"--set {field}={next((v for k, v in kinds.items() if k in about['type']), '...')}")
    words.append({"Data": "--out KEPT.jsonl", "Model": "--out FOLDER"}.get(GIVES[e["kind"]], "--out REPORT.json"))
    return f"\n## On files of yours\n\n```console\n$ {' '.join(words)}\n```\n"


def search(
    question: Annotated[str, typer.Argument(help='What you want, in words: "which labels are wrong".')],
    top: Annotated[int, typer.Option(min=1, help="How many answers.")] = 10,
    as_json: AsJson = False,
) -> None:
    """Find methods and papers by what they are for."""
    from trainlore.search import search as find

    found = find(question, top)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    if not found:
        raise Bad(f"nothing fits {question!r}; try other words, or trainlore ls")
    for f in found:
        known = f["what"] == "method"
        mark = f"[bold]{f['name']}[/bold]" if known else f"[dim]{f['name']} (paper, no method yet)[/dim]"
        say(f"{f['score']:6.1f}  {mark}  {esc(f['text'])}")


def papers(
    family: Annotated[str | None, typer.Option(help="Only this family.")] = None,
    missing: Annotated[bool, typer.Option(help="Only those without a method.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the literature: every paper with the methods that implement it, or the reason why there is none."""
    from trainlore.papers import papers as all_papers
    from trainlore.registry import index

    rows = all_papers(index())
    if family:
        rows = _of_family(rows, family)
    rows = [p for p in rows if not (missing and p["methods"])]
    if as_json:
        keys = ("id", "title", "family", "kind", "methods", "reason")
        print(json.dumps([{k: p[k] for k in keys} for p in rows], indent=1))
        return
    for p in rows:
        answer = f"[green]{', '.join(p['methods'])}[/green]" if p["methods"] else f"[dim]{esc(p['reason'])}[/dim]"
        say(f"[bold]{p['id']}[/bold] {esc(p['title'])}  [dim]{p['family']}[/dim]\n      {answer}")
    say(f"\n{len(rows)} papers, {sum(bool(p['methods']) for p in rows)} with a method")


def _of_family(rows: list[dict[str, Any]], family: str) -> list[dict[str, Any]]:
    """The rows of this family and of those below it."""
    found = [r for r in rows if r["family"] == family or r["family"].startswith(family.rstrip("/") + "/")]
    if not found:
        families = sorted({r["family"] for r in rows})
        _known(
            "family", "families", family, families, near_to=sorted({*families, *(f.split("/")[0] for f in families)})
        )
    return found


def _known(what: str, many: str, name: str, there: Any, near_to: Any = None) -> None:
    """Raise Bad with the nearest names, or all of them, unless the name is there."""
    from trainlore.registry import near

    if name not in there:
        raise Bad(f"no {what} {name!r}" + (near(name, near_to or there) or f"; {many} are {', '.join(there)}"))
