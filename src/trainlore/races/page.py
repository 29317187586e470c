"""The report of a race: one self-contained page that a person understands in ten seconds, and then can read on in."""

from __future__ import annotations

import json
import time
from pathlib import Path

from trainlore import store
from trainlore.page.pieces import CSS, big, esc, number, table
from trainlore.races import figures

COLOUR = {"better": "good", "worse": "bad"}


def write(folder: Path) -> Path:
    """Write report.html into the race's folder from race.json, and give its path."""
    record = json.loads((folder / "race.json").read_text())
    sections = [
        ("Verdict", _verdict(record)),
        ("Arms", _arms(record)),
        ("Curves", figures.curves(record)),
        ("Cost", _cost(record)),
        ("Time to target", _targets(record)),
        ("Pairs", _pairs(record)),
        ("Tuning", _tuning(record)),
        ("Stopped early", _dropped(record)),
        ("Changed", _changed(record)),
        ("Forecast", _forecast(record)),
        ("Race", _file(folder, record)),
    ]
    shown = [(title, body) for title, body in sections if body]
    nav = "".join(f'<a href="#{_slug(t)}">{t}</a>' for t, _ in shown)
    body = "".join(f'<section id="{_slug(t)}"><h2>{t}</h2>{b}</section>' for t, b in shown)
    env = record.get("environment", {})
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["started"]))
    line = f"{when} · {len(record['arms'])} arms · seeds {record['seeds'][0]} to {record['seeds'][-1]} · budget {record['budget'] or 'as each arm says'}"
    line += f" · trainlore {env.get('trainlore', '')} ({env.get('commit', '-')}) on {env.get('device', '')}, {env.get('cores', '')} cores"
    html = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{esc(record["name"])}</title><style>{CSS}</style></head><body><main>'
        f"<h1>{esc(record['name'])}</h1><p>{esc(record['question'])}</p><p class='soft'>{esc(line)}</p>"
        f"<p style='font-size:1.2rem;line-height:1.4'><b>{esc(record['verdict'])}</b></p>"
        f"<nav>{nav}</nav>{body}</main></body></html>"
    )
    store.write(folder / "report.html", html)
    return folder / "report.html"


def _slug(title: str) -> str:
    return title.lower().replace(" ", "-")


def _verdict(record: dict) -> str:
    if not record["effects"]:
        return ""
    arrow = "higher is better" if record["better"] == "higher" else "lower is better"
    rows = []
    for e in record["effects"]:
        low, high = e["interval"]
        rows.append(
            [
                f"<b>{esc(e['arm'])}</b>",
                f'<span class="{COLOUR.get(e["verdict"], "soft")}">{e["verdict"]}</span>',
                f"{e['difference']:+.4g} [{low:.4g}, {high:.4g}]",
                number(e["holm"]),
                number(e["sign_flip"]),
                number(e["mcnemar"]),
                number(e["size"]),
                number(e["detectable"]),
                f"{e['seeds']} x {number(e['rows'])}",
            ]
        )
    head = [
        "arm",
        f"against {esc(record['baseline'])}",
        "advantage [95 %]",
        "p (Holm)",
        "sign flip",
        "McNemar",
        "d",
        "detectable",
        "seeds x rows",
    ]
    note = (
        f"Advantage in {esc(record['metric'])} ({arrow}; positive speaks for the arm). The interval and p take both seeds and rows as samples (crossed random effects; "
        "hierarchical bootstrap), corrected over arms by Holm. Sign flip: over the seeds alone. McNemar: over the rows of the first seed, where answers are right or wrong. "
        "d: mean over standard deviation of the seeds' differences. Detectable: the smallest true difference found four times in five. "
        "<i>Cannot separate</i> is not <i>equal</i>."
    )
    return figures.forest(record) + table(head, rows, (2, 3, 4, 5, 6, 7, 8)) + f'<p class="soft">{note}</p>'


def _arms(record: dict) -> str:
    rows = []
    for name, a in record["arms"].items():
        scores = list(a["scores"].values())
        mean = sum(scores) / len(scores) if scores else None
        spread = f"{number(min(scores))} to {number(max(scores))}" if scores else ""
        search = a["search"]["work"] if a.get("search") else 0
        lost = "".join(f'<br><span class="bad">seed {esc(s)} lost: {esc(e)}</span>' for s, e in a["lost"].items())
        b = a["bill"]
        rows.append(
            [
                f"<b>{esc(name)}</b>{lost}",
                number(mean),
                spread,
                str(len(scores)),
                number(b["steps"]),
                big(b["work"], "FLOP"),
                big(b["tokens"]),
                f"{b['seconds']:.1f}",
                big(b["peak"], "B"),
                big(search, "FLOP") if search else "",
            ]
        )
    shared = record["shared"]
    note = f"Means over seeds of what the arm itself cost, the test left out. Shared by all and done once: {big(shared['work'], 'FLOP')}, {shared['seconds']:.1f} s; charged to each it adds that much to every line."
    orders = record["orders"]
    if orders["differ"]:
        said = f"<p>At equal steps the order is {esc(' > '.join(orders['steps']))}; at equal work {esc(' > '.join(orders['work']))}. The place of <b>{esc(', '.join(orders['differ']))}</b> depends on what is counted.</p>"
    elif orders["steps"]:
        said = "<p>The order of the arms is the same at equal steps and at equal work.</p>"
    else:
        said = ""
    head = [
        "arm",
        esc(record["metric"]),
        "worst and best seed" if record["better"] == "higher" else "best and worst seed",
        "seeds",
        "steps",
        "work",
        "tokens",
        "seconds",
        "peak",
        "search",
    ]
    return table(head, rows, (1, 2, 3, 4, 5, 6, 7, 8, 9)) + said + f'<p class="soft">{note}</p>'


def _cost(record: dict) -> str:
    return figures.front(record)


def _targets(record: dict) -> str:
    found = record.get("targets") or {}
    if not found:
        return ""
    base = found["arms"][record["baseline"]]
    rows = []

    def median(values: list) -> float | None:
        good = sorted(float("inf") if v is None else v for v in values)
        return None if not good or good[len(good) // 2] == float("inf") else good[len(good) // 2]

    for name, a in found["arms"].items():
        cells = [f"<b>{esc(name)}</b>", f"{sum(v is not None for v in a['steps'])} of {len(a['steps'])}"]
        for unit in ("steps", "work", "seconds"):
            mine, theirs = median(a[unit]), median(base[unit])
            cells.append("never" if mine is None else number(mine) if unit != "work" else big(mine))
            cells.append("" if mine is None or not theirs else f"{mine / theirs:.2f}x")
        rows.append(cells)
    note = f"Median over seeds of what it takes to a validation score of {number(found['target'])}, where {esc(record['baseline'])} ends (the median of its seeds)."
    head = ["arm", "seeds that get there", "steps", "", "work", "", "seconds", ""]
    return table(head, rows, (1, 2, 3, 4, 5, 6, 7)) + f'<p class="soft">{note}</p>' + figures.profiles(record)


def _pairs(record: dict) -> str:
    pairs = record.get("pairs") or []
    if len(record["arms"]) < 3 or not pairs:
        return ""
    rows = [
        [
            esc(e["arm"]),
            esc(e["rival"]),
            f'<span class="{COLOUR.get(e["verdict"], "soft")}">{e["verdict"]}</span>',
            f"{e['difference']:+.4g} [{e['interval'][0]:.4g}, {e['interval'][1]:.4g}]",
            number(e["holm"]),
        ]
        for e in pairs
    ]
    return f"<details><summary>every arm against every other</summary>{table(['arm', 'rival', '', 'advantage [95 %]', 'p (Holm over all pairs)'], rows, (3, 4))}</details>"


def _tuning(record: dict) -> str:
    tuned = record.get("tuning") or {}
    if not tuned:
        return ""
    rows = []
    for name, t in tuned.items():
        done = [x["score"] for x in t["trials"] if x["state"] == "finished" and x["score"] is not None]
        best = (
            ", ".join(f"{k} {number(v) if not isinstance(v, str) else v}" for k, v in t["best"].items())
            or "as it stood"
        )
        searched = ", ".join(t["ranges"]) or "nothing to tune"
        first = t["trials"][0]["score"] if t["trials"] else None
        rows.append(
            [
                f"<b>{esc(name)}</b>",
                esc(searched),
                f"{len(done)} of {len(t['trials'])}",
                number(first),
                f"{number(min(done))} to {number(max(done))}" if done else "",
                esc(best),
                big(t["bill"].get("work", 0.0), "FLOP"),
            ]
        )
    note = "Every arm had the same number of trials on the validation rows, which the verdict never sees; the first has the values that stand in the race. The search is on the arm's bill."
    return (
        figures.tuning(record)
        + table(
            ["arm", "searched", "trials", "as it stood", "spread", "chosen", "cost of the search"], rows, (2, 3, 4, 6)
        )
        + f'<p class="soft">{note}</p>'
    )


def _dropped(record: dict) -> str:
    gone = record.get("dropped") or {}
    if not gone:
        return ""
    rows = [
        [f"<b>{esc(n)}</b>", f"{d['rung']:.0%}", number(d["score"]), esc(d["leader"]), f"{d['chance']:.1%}"]
        for n, d in gone.items()
    ]
    return table(["dropped", "at", "score there", "leader there", "chance that it would have won"], rows, (1, 2, 4))


def _changed(record: dict) -> str:
    rows = []
    for name, a in record["arms"].items():
        for s in a["did"]:
            effects = [e for e in s.get("effects", []) if e["part"] != "Track"]
            for e in effects:
                did = ", ".join(f"{esc(k)} {number(v)}" for k, v in e["did"].items()) or "nothing"
                state = (
                    '<span class="bad">dead</span>'
                    if e["dead"]
                    else "at its null"
                    if e["null"]
                    else '<span class="good">acted</span>'
                )
                rows.append([esc(name), f"<b>{esc(e['part'])}</b>", state, did])
            if s.get("rows") is not None and s.get("rows_in"):
                rows.append(
                    [esc(name), f"<b>{esc(s['name'])}</b>", "", f"{number(s['rows'])} rows of {number(s['rows_in'])}"]
                )
    same = _twins(record)
    note = "".join(
        f'<p class="bad">{esc(a)} and {esc(b)} gave the same score with every seed: the difference between them does nothing here.</p>'
        for a, b in same
    )
    return note + (table(["arm", "method", "", "what it changed"], rows) if rows else "") if rows or same else ""


def _twins(record: dict) -> list[tuple[str, str]]:
    names = [n for n, a in record["arms"].items() if a["scores"]]
    arms = record["arms"]
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if arms[a]["scores"] == arms[b]["scores"]]


def _forecast(record: dict) -> str:
    f = record.get("preflight") or {}
    truth = f.get("truth")
    if not truth:
        return ""
    rows = [
        ["time", _clock(f["seconds"]), _clock(truth["seconds"])],
        ["work", big(f["work"] or 0, "FLOP"), big(truth["work"], "FLOP")],
        ["memory", big(f["peak"], "B"), big(truth["peak"], "B")],
        ["smallest difference it finds", number(f["detectable"]), number(truth["detectable"])],
    ]
    return table(["", f"said after {f['share']:.0%} of the training", "came"], rows, (1, 2))


def _clock(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds / 60:.1f} min" if seconds > 90 else f"{seconds:.0f} s"


def _file(folder: Path, record: dict) -> str:
    text = (folder / "race.yaml").read_text() if (folder / "race.yaml").exists() else ""
    env = json.dumps(record.get("environment", {}), indent=1)
    return f"<details><summary>race.yaml</summary><pre>{esc(text)}</pre></details><details><summary>environment</summary><pre>{esc(env)}</pre></details>"
