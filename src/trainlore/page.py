"""The report of a run: one self-contained page, readable on a phone and in the dark."""

from __future__ import annotations

import html
import json
import time
from pathlib import Path
from typing import Any

from trainlore import figures, store

CSS = """
:root{color-scheme:light dark;--ink:#1d2129;--soft:#667085;--line:#d9dde5;--paper:#fff;--card:#f6f7f9;--good:#1a7f4b;--bad:#c02b2b;--accent:#2f6fdf}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#98a2b3;--line:#333a46;--paper:#14171c;--card:#1c2027;--good:#4cc38a;--bad:#ff7b72;--accent:#7aa7ff}}
*{box-sizing:border-box}body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:66rem;margin:0 auto;padding:1.2rem}h1{font-size:1.7rem;line-height:1.2;margin:.6rem 0 .2rem}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}p{margin:.4rem 0}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(9.5rem,1fr));gap:.6rem;margin:1rem 0}
.card{background:var(--card);border-radius:.5rem;padding:.6rem .8rem}.card b{display:block;font-size:1.25rem}.card span{color:var(--soft);font-size:.82rem}
.wide{overflow-x:auto;overflow-wrap:normal}table{border-collapse:collapse;width:100%;font-size:.88rem}th{text-align:left;color:var(--soft);font-weight:500}
th,td{padding:.28rem .7rem .28rem 0;border-bottom:1px solid var(--line);vertical-align:top}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.good{color:var(--good)}.bad{color:var(--bad);font-weight:600}figure{margin:.8rem 0}figure svg{max-width:100%;height:auto}figcaption{color:var(--soft);font-size:.85rem}
.bar{height:.5rem;background:var(--accent);border-radius:.25rem;min-width:1px}pre{background:var(--card);padding:.7rem;border-radius:.5rem;overflow-x:auto;font-size:.8rem;white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.5rem 0}summary{cursor:pointer}.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:.6rem}
h3{font-size:1rem;margin:1.4rem 0 .4rem}.two{grid-template-columns:repeat(auto-fit,minmax(min(24rem,100%),1fr))}.look{border-left:2px solid var(--line);padding-left:.8rem;margin:1.4rem 0}.look .pair{margin:.8rem 0}.maps{grid-template-columns:repeat(auto-fill,minmax(min(17rem,100%),1fr))}.maps figure,.two figure{margin:0}
.kept{border-left:3px solid var(--good)}.drop{border-left:3px solid var(--line)}.two .card div{font-size:.85rem;line-height:1.4;white-space:pre-line;max-height:9.8em;overflow-y:auto}.two .card span{display:block;margin-bottom:.2rem}.two .card b{display:inline;font-size:inherit}
.of{white-space:nowrap;margin-left:.5em}.chip{display:inline-block;width:.7em;height:.7em;border-radius:50%;margin:0 .25em}
nav{display:flex;flex-wrap:wrap;gap:.2rem .9rem;font-size:.85rem}a{color:var(--accent)}.tag{font-size:.75rem;border:1px solid var(--line);border-radius:1rem;padding:0 .5rem;color:var(--soft)}
"""


def write(folder: Path) -> Path:
    """Write report.html into a run's folder from its record, and give its path."""
    record = json.loads((folder / "run.json").read_text())
    sections = [
        ("Verdicts", _verdicts(record)),
        ("Loss", _losses(record)),
        ("Data", _data(record)),
        ("Choices", _choices(record)),
        ("Measurements", _measurements(record)),
        ("Samples", _samples(record)),
        ("Cost", _cost(record)),
        ("Switches", _switches(record)),
        ("Parity", _parity(record)),
        ("Trails", _trails(folder, record)),
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


def esc(value: Any) -> str:
    """Text safe inside HTML: what comes out of data must never become markup."""
    return html.escape(str(value))


def number(value: Any) -> str:
    """A number as people read it."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer() and abs(value) < 1e7):
        return f"{int(value):,}"
    return f"{value:,.1f}" if 100 <= abs(value) < 1e7 else f"{value:.3g}"


def big(value: float, unit: str = "") -> str:
    """A large number with its scale."""
    for scale, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {letter}{unit}"
    return f"{value:.3g} {unit}".strip()


def table(head: list[str], rows: list[list[str]], numeric: tuple[int, ...] = ()) -> str:
    """An HTML table; cells are already HTML."""
    mark = lambda i: ' class="n"' if i in numeric else ""
    top = "".join(f"<th{mark(i)}>{h}</th>" for i, h in enumerate(head))
    body = "".join("<tr>" + "".join(f"<td{mark(i)}>{c}</td>" for i, c in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _head(record: dict) -> str:
    steps, env = record["steps"], record.get("environment", {})
    seconds = sum(s["seconds"] for s in steps if not s["cached"])
    dead = [e["part"] for s in steps for e in s["effects"] if e["dead"]]
    gates = [p for s in steps for p in s["parity"]]
    cards = [
        (big(record.get("meter", {}).get("work", 0.0), "FLOP"), "work, all networks"),
        (
            f"{int(seconds // 60)} min {int(seconds % 60)} s" if seconds >= 60 else f"{seconds:.0f} s",
            "of steps that ran",
        ),
        (big(sum(s["tokens"] for s in steps)), "tokens through networks"),
        (big(max((s["peak"] for s in steps), default=0), "B"), "peak memory"),
        (str(len(dead)) if dead else "none", "dead switches"),
        (f"{sum(p['passed'] for p in gates)} of {len(gates)}", "parity gates passed"),
    ]
    grid = "".join(f'<div class="card"><b>{esc(v)}</b><span>{esc(k)}</span></div>' for v, k in cards)
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(record["started"]))
    line = f"{when} · seed {record['seed']} · {len(steps)} of {record['total']} steps · {record['state']}"
    line += f" · trainlore {env.get('trainlore', '')} ({env.get('commit', '-')}) on {env.get('device', '')}, {env.get('cores', '')} cores"
    error = f'<p class="bad">{esc(record["error"])}</p>' if record.get("error") else ""
    return f'<p class="soft">{esc(line)}</p>{error}<div class="cards">{grid}</div>'


def _verdicts(record: dict) -> str:
    """Every stage against its rival: the paired comparisons of the run, and how far the predicted loss was off."""
    rows = []
    for s in record["steps"]:
        for m in s.get("report", []):
            n = m["notes"]
            if "verdict" not in n:
                continue
            kind = {"better": "good", "worse": "bad"}.get(n["verdict"], "soft")
            rival = esc(str(s["fields"].get("rival", "")))
            line = [f"${esc(s['wires'].get('model', ''))}", rival, f'<span class="{kind}">{esc(n["verdict"])}</span>']
            low, high = n["interval"]
            gap = f"{number(n['difference'])} [{number(low)}, {number(high)}]"
            rows.append(
                [
                    *line,
                    f"{number(n['model'])} : {number(n['rival'])}",
                    gap,
                    number(n["p"]),
                    number(m["n"]),
                    number(n.get("detectable")),
                ]
            )
    if not rows:
        return ""
    head = ["model", "rival", "verdict", "means", "advantage [95 %]", "p", "rows", "detectable"]
    note = "Paired over rows of one training each: the interval speaks of rows, not of seeds. Detectable: the smallest difference found four times in five."
    return table(head, rows, (3, 4, 5, 6, 7)) + f'<p class="soft">{note}</p>'


def _losses(record: dict) -> str:
    fits = [s for s in record["steps"] if s["name"] == "train" and s.get("curve") and len(s["curve"]["t"]) > 1]
    if not fits:
        return ""
    lines = ""
    predicted = {}
    for s in record["steps"]:
        for m in s.get("report", []):
            n = m["notes"]
            if "predicted" in n.get("curve", {}):
                name = s["wires"].get("model", "")
                predicted[name] = n
                lines += (
                    f"<p>Predicted from the first {n['fitted_to']:,} steps of <b>${esc(name)}</b>: final loss {n['predicted']:.3f}; reached "
                    f"{n['final']:.3f}. The miss is <b>{n['miss']:+.3f}</b> nats (annealing {esc(n['annealing'])} in the part that was fitted).</p>"
                )
    return lines + figures.curves(fits, predicted)


def _data(record: dict) -> str:
    steps = [s for s in record["steps"] if s.get("noun") == "Data" and s.get("data", {}).get("rows")]
    if not steps:
        return ""
    rows = [
        [
            str(s["number"]),
            f"<b>{esc(s['name'])}</b>",
            "$" + esc(s["as"]),
            number(s.get("rows_in")),
            number(s["data"]["rows"]),
            f"{big(s['data']['total'])} {s['data'].get('unit', '')}" if "total" in s["data"] else "",
            number(s["data"].get("median")),
        ]
        for s in steps
    ]
    out = table(["", "step", "gave", "rows in", "rows out", "in all", "median length"], rows, (3, 4, 5, 6))
    return (
        out
        + figures.domains([s for s in steps if s["data"].get("domains")])
        + figures.lengths([s for s in steps if "lengths" in s["data"]])
    )


def _choices(record: dict) -> str:
    """What every step that narrows its data kept and dropped, by which score, and how far those that chose from one pool agree."""
    out = "".join(_choice(s) for s in record["steps"] if s.get("look"))
    for one in record.get("agreement", []):
        rows = [
            [
                f"<b>{esc(p['one'])}</b> and <b>{esc(p['other'])}</b>",
                number(p["both"]),
                f"{p['overlap']:.0%}",
                f'<div class="bar" style="width:{100 * p["overlap"]:.0f}px"></div>',
                f"{p['chance']:.0%}",
                number(p["rank"]),
            ]
            for p in one["pairs"]
        ]
        head = ["", "rows both keep", "overlap", "", "by chance", "rank correlation of scores"]
        out += f"<h3>Agreement of those that chose from ${esc(one['pool'])}</h3>" + table(head, rows, (1, 2, 4, 5))
        out += '<p class="soft">Overlap: of the rows that either keeps, those that both keep; by chance: of two random choices of these sizes. Scores are turned so that high means kept.</p>'
    return out


def _choice(step: dict) -> str:
    look = step["look"]
    title = f"<b>{step['number']} {esc(step['name'])}</b> → ${esc(step['as'])}"
    if "error" in look:
        return f'<p class="soft">{title}: could not be looked at ({esc(look["error"])})</p>'
    drawn = "".join(map(figures.scores, look["scores"])) + (figures.shares(look["domains"]) if look["domains"] else "")
    if found := look["reasons"]:
        both = any(held for *_, held in found["counts"])
        rows = [[esc(word) or "(none)", number(lost), *[number(held)] * both] for word, lost, held in found["counts"]]
        drawn += table([esc(found["column"]), "dropped", *["kept"] * both], rows, (1, 2))
    body = f'<div class="pair two">{drawn}</div>' if drawn else ""
    if found := look["map"]:
        score = look["scores"][0]["name"] if look["scores"] else ""
        more = f", and {found['more']} more of the kept ones" if found["more"] else ""
        body += f'<div class="pair maps">{figures.cloud(found, score, look["domains"].get("column", "domain"))}</div>'
        body += f'<p class="soft">A map of {number(found["pool"])} of {number(look["rows"])} rows{more}: near each other where their {esc(found["by"])} are alike (PCA).</p>'
    body += _examples(look["examples"], bool(look["scores"]) and not look["reasons"])
    if found := look["copies"]:
        body += f"<p><b>Copies</b>: {number(found['rows'])} rows copy {number(found['groups'])} others; the largest group has {number(found['largest'])} rows</p>"
        cells = ""
        for pair in found["pairs"]:
            cells += _card("drop", f'<b class="bad">dropped</b> row {pair["row"]}', pair["text"])
            cells += _card("kept", f"copy of row {pair['of']}", pair["text_of"])
        body += f'<div class="pair two">{cells}</div>'
    share = f"{look['kept']:,} of {look['rows']:,} rows kept ({look['kept'] / look['rows']:.1%})"
    return f'<details class="look" open><summary>{title}: {share}</summary>{body}</details>'


def _examples(found: dict, ordered: bool, most: int = 4) -> str:
    """Kept against dropped rows, side by side."""
    sides = {}
    for side, rows in found.items():
        sides[side] = [rows[round(i * (len(rows) - 1) / (most - 1))] for i in range(most)] if len(rows) > most else rows
    out = ""
    for at in range(max(map(len, sides.values()))):
        for side, word in (("kept", "good"), ("dropped", "bad")):
            if at >= len(sides[side]):
                out += "<div></div>"
                continue
            row = sides[side][at]
            said = [f"{esc(k)} {number(v) if isinstance(v, int | float) else esc(v)}" for k, v in row["scores"].items()]
            head = [f'<b class="{word}">{side}</b> row {row["row"]}', *filter(None, [esc(row["domain"])]), *said]
            out += _card(side[:4], " · ".join(head), row["text"])
    note = '<p class="soft">From the rows nearest to the cut to the farthest:</p>' if ordered else ""
    return f'{note}<div class="pair two">{out}</div>'


def _card(kind: str, head: str, text: str) -> str:
    """A row: what is known of it, already HTML, and its text."""
    return f'<div class="card {kind}"><span>{head}</span><div>{esc(text)}</div></div>'


def _measurements(record: dict) -> str:
    rows, notes = [], ""
    for s in record["steps"]:
        for m in s.get("report", []):
            if "samples" in m["notes"] or "verdict" in m["notes"] or "predicted" in m["notes"].get("curve", {}):
                continue
            error = f" ± {number(m['stderr'])}" if m["stderr"] == m["stderr"] and m["stderr"] is not None else ""
            groups = "; ".join(f"{esc(k)} {number(v)}" for g in m["groups"].values() for k, v in list(g.items())[:12])
            of = f"${esc(s['wires'].get('model', ''))} on ${esc(s['wires'].get('data', ''))}"
            arrow = {"higher": "↑", "lower": "↓"}.get(m["better"], "")
            rows.append(
                [
                    f"<b>{esc(m['metric'])}</b> {arrow}",
                    of,
                    number(m["value"]) + error,
                    number(m["n"]),
                    f'<span class="soft">{groups}</span>',
                ]
            )
        notes += figures.bins(s)
    return (table(["metric", "of", "value ± standard error", "n", "by group"], rows, (2, 3)) + notes) if rows else ""


def _samples(record: dict) -> str:
    found = [
        (s, m["notes"]["samples"]) for s in record["steps"] for m in s.get("report", []) if "samples" in m["notes"]
    ]
    if not found:
        return ""
    prompts: dict[str, dict[str, Any]] = {}
    for s, samples in found:
        for one in samples:
            mine = prompts.setdefault(one["prompt"], {"reference": one.get("reference", ""), "by": []})
            mine["by"].append((s["wires"].get("model", "?"), one["completion"]))
    out = ""
    for prompt, mine in list(prompts.items())[:8]:
        cells = "".join(
            f'<div class="card"><span>${esc(name)}</span><div>{esc(text) or "<i>(nothing)</i>"}</div></div>'
            for name, text in mine["by"]
        )
        reference = (
            f'<div class="card"><span>the people who wrote it</span><div>{esc(mine["reference"])}</div></div>'
            if mine["reference"]
            else ""
        )
        out += f'<details open><summary class="soft">{esc((prompt.splitlines() or [""])[0][:110])}</summary><pre>{esc(prompt[:600])}</pre><div class="pair">{cells}{reference}</div></details>'
    return out


def _cost(record: dict) -> str:
    steps = record["steps"]
    most = max((s["seconds"] for s in steps), default=1) or 1
    rows = [
        [
            str(s["number"]),
            esc(s["name"]) + (' <span class="tag">from the store</span>' if s["cached"] else ""),
            "$" + esc(s["as"]),
            big(s["work"]) if s["work"] else "",
            big(s["tokens"]) if s["tokens"] else "",
            f"{s['seconds']:.1f}",
            f'<div class="bar" style="width:{100 * s["seconds"] / most:.1f}px"></div>',
            big(s["peak"], "B"),
        ]
        for s in steps
    ]
    return table(["", "step", "gave", "FLOP", "tokens", "seconds", "", "peak memory"], rows, (3, 4, 5, 7))


def _switches(record: dict) -> str:
    rows = []
    for s in record["steps"]:
        for e in s["effects"]:
            did = ", ".join(f"{esc(k)} {number(v)}" for k, v in e["did"].items()) or "nothing"
            state = (
                '<span class="bad">dead</span>'
                if e["dead"]
                else '<span class="soft">at its null</span>'
                if e["null"]
                else '<span class="good">acted</span>'
            )
            rows.append([f"{s['number']} {esc(s['as'])}", f"<b>{esc(e['part'])}</b>", state, did])
    note = '<p class="soft">Measured by the engine on a few steps: the largest relative change each part made in each slot. Looking on (watch) and stopping cannot be told from doing nothing.</p>'
    return table(["training", "part", "", "largest change, by slot"], rows) + note if rows else ""


def _parity(record: dict) -> str:
    rows = []
    for s in record["steps"]:
        for p in s["parity"]:
            change = (
                f"{p['loss_change']:+.4f}" + (f" ± {p['loss_stderr']:.4f}" if p.get("loss_stderr") else "")
                if "loss_change" in p
                else "–"
            )
            gate = "–" if p["tolerance"] is None else number(p["tolerance"])
            verdict = (
                '<span class="soft">not gated</span>'
                if p["tolerance"] is None
                else '<span class="good">passed</span>'
                if p["passed"]
                else '<span class="bad">failed</span>'
            )
            rows.append(
                [
                    f"{s['number']} <b>{esc(p['method'])}</b>",
                    number(p["distance"]),
                    gate,
                    verdict,
                    change,
                    number(p["rows"]),
                ]
            )
    return (
        table(
            ["change of form", "distance of logits", "tolerance", "", "paired change of loss (nats)", "rows"],
            rows,
            (1, 2, 4, 5),
        )
        if rows
        else ""
    )


def _trails(folder: Path, record: dict) -> str:
    from trainlore import trail

    try:
        steps = trail.curations(folder)
    except Exception:  # a store that was cleaned: the report is written all the same
        return ""
    if not steps:
        return ""
    first = steps[0]
    root = first["from"]
    sources, gone, later = _sources(steps, root), [], []
    if not first.get("made"):  # else its ids are those of new rows
        gone = first["out"].dropped().ids[:2].tolist()
        later = [i for i in first["out"].ids.tolist()[:: max(1, len(first["out"]) // 11)] if i not in sources]
    out = ""
    for id in [*dict.fromkeys([*sources[:5], *gone, *later])][:10]:
        lines = trail.row(folder, int(id), root)
        rows = []
        for line in lines:
            scores = ", ".join(
                f"{esc(k)} {number(v) if isinstance(v, int | float) else esc(v)}" for k, v in line["scores"].items()
            )
            kind = "good" if line["what"] == "kept" else "bad" if line["what"] == "dropped" else "soft"
            rows.append(
                [
                    f"{line['step']} {esc(line['method'])}",
                    f'<span class="{kind}">{esc(line["what"])}</span>',
                    scores,
                    f'<span class="soft">{esc(line["text"][:90])}</span>',
                ]
            )
        end = lines[-1]["what"] if lines else ""
        out += f"<details><summary>row {id} of ${esc(root)}: {esc(end)} by {esc(lines[-1]['method']) if lines else ''}</summary>{table(['step', '', 'scores', ''], rows)}</details>"
    return out


def _sources(steps: list[dict], root: str) -> list[int]:
    """A few rows of the data `root` that live on in the last text made of it."""
    for at in reversed(range(len(steps))):
        if "text" in steps[at]["out"].columns:
            ids = steps[at]["out"].ids
            noun, found = _traced(steps[: at + 1], ids[:: max(1, len(ids) // 5)][:5].tolist())
            if noun == root:
                return found
    return []


def _traced(steps: list[dict], ids: list[int]) -> tuple[str, list[int]]:
    """The noun these rows of the last step's data came from at the very first, and which of its rows they were."""
    import numpy as np

    noun = steps[-1]["as"]
    for step in reversed(steps):
        if step["as"] != noun:
            continue
        out = step["out"]
        if step.get("made"):
            where = np.flatnonzero(np.isin(out.ids, ids))
            try:
                values, offsets = out.take(where).lists("parents")
                ids = values[offsets[:-1]].tolist()
            except ValueError:
                ids = np.asarray(out.take(where)["parents"]).tolist()
        noun = step["from"]
    return noun, [int(i) for i in ids]


def _recipe(folder: Path, record: dict) -> str:
    text = (folder / "recipe.yaml").read_text() if (folder / "recipe.yaml").exists() else ""
    env = json.dumps(record.get("environment", {}), indent=1)
    return f"<details><summary>recipe.yaml</summary><pre>{esc(text)}</pre></details><details><summary>environment</summary><pre>{esc(env)}</pre></details>"
