"""What the steps on data made, kept and dropped, how far their choices agree, and what became of single rows."""

from __future__ import annotations

from pathlib import Path

from trainlore import figures
from trainlore.page.pieces import big, card, esc, number, table


def data(record: dict) -> str:
    """How many rows each step made, how long they are and of which domains."""
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


def choices(record: dict) -> str:
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
            cells += card("drop", f'<b class="bad">dropped</b> row {pair["row"]}', pair["text"])
            cells += card("kept", f"copy of row {pair['of']}", pair["text_of"])
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
            out += card(side[:4], " · ".join(head), row["text"])
    note = '<p class="soft">From the rows nearest to the cut to the farthest:</p>' if ordered else ""
    return f'{note}<div class="pair two">{out}</div>'


def trails(folder: Path, record: dict) -> str:
    """What every step did to a few rows: some that live on, some that were dropped."""
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
