"""Races that were published: lines that are only ever added to, a picture of the newest, and the page of all of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from trainlore.page.pieces import big, number

KEPT = (
    "name", "question", "verdict", "metric", "better", "budget", "seeds", "baseline", "effects", "orders", "seconds", "started", "settings",
)  # fmt: skip
MACHINE = ("trainlore", "commit", "torch", "transformers", "device", "cpu", "cores")
PAGE = """# What we measured

Races of methods against the trivial baseline and against doing nothing, at equal budgets, over several seeds, on data that anybody has:
the [standing races](races.md#standing-races). Each is repeated with `trainlore race NAME`; every line ever published is in `results/races/`.

Intervals take both seeds and test rows as samples, p values are corrected over the arms of a race (Holm), and *cannot separate* is not *equal*: the
smallest difference that the race would have found four times in five stands beside it. These are small models and small data; the order of the
arms on yours is a question for a race of yours.
"""


def append(record: dict[str, Any], folder: Path, root: Path = Path("results/races")) -> Path:
    """Add the result as a line to results/races/NAME.jsonl: what is needed to read the numbers later. Gives the file."""
    from trainlore.folders import slug
    from trainlore.races import figures

    line = {k: record[k] for k in KEPT if k in record}
    line["environment"] = {k: record["environment"].get(k) for k in MACHINE}
    line["arms"] = {
        n: {k: a[k] for k in ("scores", "bill", "lost", "search", "dropped")} for n, a in record["arms"].items()
    }
    line["race"] = (folder / "race.yaml").read_text()
    path = root / f"{slug(record['name'])}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    if record["effects"]:
        path.with_suffix(".html").write_text(figures.forest(record) + "\n")
    return path


def page(root: Path) -> str:
    """The newest line of every race as Markdown."""
    found = [json.loads(p.read_text().splitlines()[-1]) | {"file": p} for p in sorted(root.glob("*.jsonl"))]
    return PAGE + "".join(_section(line) for line in found)


def _section(line: dict[str, Any]) -> str:
    effects = {e["arm"]: e for e in line["effects"]}
    rows = []
    for name, arm in line["arms"].items():
        scores, e = list(arm["scores"].values()), effects.get(name)
        cells = [name, number(sum(scores) / len(scores)) if scores else "–"]
        if e:
            low, high = e["interval"]
            cells += [f"{e['difference']:+.3g} [{low:.3g}, {high:.3g}]", number(e["holm"]), e["verdict"]]
            cells += [number(e["detectable"])]
        else:
            cells += ["", "", "baseline" if name == line["baseline"] else "lost", ""]
        cells += [number(arm["bill"]["steps"]), big(arm["bill"]["work"])]
        rows.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    env, file = line["environment"], line["file"]
    picture = f'--8<-- "results/races/{file.stem}.html"\n\n' if file.with_suffix(".html").exists() else ""
    when = time.strftime("%Y-%m-%d", time.gmtime(line["started"]))
    seeds = f"{len(line['seeds'])} seeds, " + (
        f"a budget of {line['budget']}" if line["budget"] else "budgets as the arms say"
    )
    return (
        f"\n## {line['name'][:1].upper()}{line['name'][1:]}\n\n{line['question']} **{line['verdict']}**\n\n{picture}"
        f"| arm | {line['metric']} | advantage [95 %] | p | against {line['baseline']} | detectable | steps | work |\n"
        "|---|--:|--:|--:|---|--:|--:|--:|\n" + "\n".join(rows) + "\n\n"
        f"{when}, {seeds}, {line['seconds'] / 60:.1f} minutes on {env['cores']} cores ({env['cpu'] or env['device']}), torch {env['torch']}.\n"
    )
