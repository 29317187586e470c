"""The report of a run: one self-contained page, readable on a phone and in the dark.

    pieces   style, tables, numbers as people read them: what other pages are made of too
    data     what the steps on data made, kept and dropped, and the trails of rows
    models   verdicts, losses, measurements, samples
    engine   what it cost, which switches were dead, which changes of form changed the outputs

A section is a function of a run's record that gives HTML, or nothing where there is nothing to tell.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from trainlore import store
from trainlore.page import data, engine, models
from trainlore.page.pieces import CSS, big, esc


def write(folder: Path) -> Path:
    """Write report.html into a run's folder from its record, and give its path."""
    record = json.loads((folder / "run.json").read_text())
    sections = [
        ("Verdicts", models.verdicts(record)),
        ("Loss", models.losses(record)),
        ("Data", data.data(record)),
        ("Choices", data.choices(record)),
        ("Asked", data.asked(folder, record)),
        ("Measurements", models.measurements(record)),
        ("Samples", models.samples(record)),
        ("Cost", engine.cost(record)),
        ("Switches", engine.switches(record)),
        ("Parity", engine.parity(record)),
        ("Trails", data.trails(folder, record)),
        ("Recipe", _recipe(folder, record)),
    ]
    shown = [(title, body) for title, body in sections if body]
    nav = "".join(f'<a href="#{t.lower()}">{t}</a>' for t, _ in shown)
    body = "".join(f'<section id="{t.lower()}"><h2>{t}</h2>{b}</section>' for t, b in shown)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{esc(record["name"])}</title><style>{CSS}</style></head><body><main>'
        f"<h1>{esc(record['name'])}</h1>{_head(record)}<nav>{nav}</nav>{body}</main></body></html>"
    )
    store.write(folder / "report.html", page)
    return folder / "report.html"


def _head(record: dict) -> str:
    steps, env = record["steps"], record.get("environment", {})
    seconds = sum(s["seconds"] for s in steps if not s["cached"])
    dead = [e["part"] for s in steps for e in s["effects"] if e["dead"]]
    gates = [p for s in steps for p in s["parity"]]
    work, tokens = record.get("meter", {}).get("work", 0.0), sum(s["tokens"] for s in steps)
    cards = [(big(work, "FLOP"), "work, all networks")] if work else []
    cards.append(
        (
            f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.0f} s",
            "of steps that ran",
        )
    )
    if tokens:
        cards.append((big(tokens), "tokens through networks"))
    cards.append((big(max((s["peak"] for s in steps), default=0), "B"), "peak memory"))
    if any(s["effects"] for s in steps):
        cards.append((str(len(dead)) if dead else "none", "dead switches"))
    if gates:
        cards.append((f"{sum(p['passed'] for p in gates)} of {len(gates)}", "parity gates passed"))
    grid = "".join(f'<div class="card"><b>{esc(v)}</b><span>{esc(k)}</span></div>' for v, k in cards)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["started"]))
    line = f"{when} · seed {record['seed']} · {len(steps)} of {record['total']} steps · {record['state']}"
    line += f" · trainlore {env.get('trainlore', '')} ({env.get('commit', '-')}) on {env.get('device', '')}, {env.get('cores', '')} cores"
    error = f'<p class="bad">{esc(record["error"])}</p>' if record.get("error") else ""
    return f'<p class="soft">{esc(line)}</p>{error}<div class="cards">{grid}</div>'


def _recipe(folder: Path, record: dict) -> str:
    text = (folder / "recipe.yaml").read_text() if (folder / "recipe.yaml").exists() else ""
    env = json.dumps(record.get("environment", {}), indent=1)
    return f"<details><summary>recipe.yaml</summary><pre>{esc(text)}</pre></details><details><summary>environment</summary><pre>{esc(env)}</pre></details>"
