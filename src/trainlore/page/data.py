"""What the steps on data made, kept and dropped, how far their choices agree, and what became of single rows."""

from __future__ import annotations

import difflib
import re
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
        if not one["pairs"]:  # of the others one made rows of its own
            continue
        rows = [
            [
                f"<b>{esc(p['one'])}</b> and <b>{esc(p['other'])}</b>",
                number(p["both"]),
                f"{p['overlap']:.0%}",
                f'<div class="bar" style="width:{100 * p["overlap"]:.0f}px"></div>',
                f"{p['chance']:.0%}",
                "–" if p["rank"] is None else f"{p['rank']:.2f}",
            ]
            for p in one["pairs"]
        ]
        head = ["", "rows both keep", "overlap", "", "by chance", "rank correlation of scores"]
        out += f"<h3>Agreement of those that chose from ${esc(one['pool'])}</h3>" + table(head, rows, (1, 2, 4, 5))
        out += '<p class="soft">Overlap: of the rows that either keeps, those that both keep; by chance: of two random choices of these sizes. Scores are turned so that high means kept; – where one of the two has no score.</p>'
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
    body += "".join(_bounds(s) for s in look["scores"])
    if found := look["map"]:
        score = look["scores"][0]["name"] if look["scores"] else ""
        more = f", and {found['more']} more of the kept ones" if found["more"] else ""
        body += f'<div class="pair maps">{figures.cloud(found, score, look["domains"].get("column", "domain"))}</div>'
        body += f'<p class="soft">A map of {number(found["pool"])} of {number(look["rows"])} rows{more}: near each other where their {esc(found["by"])} are alike (PCA).</p>'
    found = look["copies"]
    if not found or found["rows"] < look["rows"] - look["kept"]:  # else the copies are examples enough
        body += _examples(look["examples"], bool(look["scores"]), bool(look["reasons"]))
    if found:
        body += f"<p><b>Copies</b>: {number(found['rows'])} rows copy {number(found['groups'])} others; the largest group has {number(found['largest'])} rows</p>"
        cells = ""
        for pair in found["pairs"]:
            mine, other = _marked(pair["text"], pair["text_of"])
            cells += card("drop", f'<b class="bad">dropped</b> row {pair["row"]}, a copy of', mine)
            cells += card("kept", f'<b class="good">kept</b> row {pair["of"]}', other)
        body += f'<div class="pair two">{cells}</div>'
    of = "rows that it made" if look.get("made") else "rows"
    share = f"{look['kept']:,} of {look['rows']:,} {of} kept ({look['kept'] / look['rows']:.1%})"
    return f'<details class="look" open><summary>{title}: {share}</summary>{body}</details>'


def _bounds(score: dict) -> str:
    """What a histogram does not show: rows beyond its ends, and rows without a score."""
    said = (
        [f"{number(n)} rows lie beyond its ends and are counted in its outer bars"]
        if (n := score.get("beyond"))
        else []
    )
    said += [f"{number(n)} rows have none"] if (n := score.get("none")) else []
    return f'<p class="soft">{esc(score["name"])}: {"; ".join(said)}.</p>' if said else ""


def _marked(one: str, other: str) -> tuple[str, str]:
    """Two texts as HTML, the words in which they differ marked."""
    words: list[list[str]] = [re.split(r"(\s+)", text) for text in (one, other)]
    sides: tuple[list[str], list[str]] = ([], [])
    for what, *at in difflib.SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        for side, text, (low, high) in zip(sides, words, (at[:2], at[2:]), strict=True):
            said = esc("".join(text[low:high]))
            side.append(said if what == "equal" or not said.strip() else f"<mark>{said}</mark>")
    return "".join(sides[0]), "".join(sides[1])


def _examples(found: dict, scored: bool, reasoned: bool, most: int = 4) -> str:
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
            out += card(side[:4], " · ".join(head), esc(row["text"]))
    note = ""
    if scored:
        lost = "dropped rows by their reasons in turn" if reasoned else "dropped rows the other way round"
        note = f'<p class="soft">Kept rows from the worst score up to the best, {lost}:</p>'
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
            text = esc(line.get("text", "")[:90]) + (
                f"<br>a copy of: {esc(line['copied'][:90])}" if "copied" in line else ""
            )
            kind = "good" if line["what"] == "kept" else "bad" if line["what"] == "dropped" else "soft"
            rows.append(
                [
                    f"{line['step']} {esc(line['method'])}",
                    f'<span class="{kind}">{esc(line["what"])}</span>',
                    esc(trail.said(line)),
                    f'<span class="soft">{text}</span>',
                ]
            )
        told = [line for line in lines if "text" in line]
        end = next((line for line in reversed(lines) if "trained on" in line["what"]), (told or lines)[-1])
        out += f"<details><summary>row {id} of ${esc(root)}: {esc(end['what'])} by {esc(end['method'])}</summary>{table(['step', '', 'scores', ''], rows)}</details>"
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
    from trainlore import trail

    noun = steps[-1]["as"]
    for step in reversed(steps):
        if step["as"] != noun:
            continue
        if step.get("made"):  # of several rows the first one; some are made of none
            ids = [mine[0] for id in ids if (mine := trail.parents(step["out"], [id]))]
        noun = step["from"]
    return noun, [int(i) for i in ids]


def asked(folder: Path, record: dict) -> str:
    """What active learning asked about, round by round, and which rows still wait for an answer."""
    from trainlore import trail

    _, store = trail.opened(folder)
    out = ""
    for step in record["steps"]:
        if step["kind"] != "Fit" or "pool" not in step["fields"] or not store.has(step["key"]):
            continue
        try:
            about = store.get(step["key"]).about
        except Exception:  # a store that was damaged: the report is written all the same
            continue
        if "waiting" not in about:
            continue
        rows = [_round(told) for told in about["asked"]]
        head = ["round", "asked", "rows", "labels given", "agreement", "entropy"]
        waiting = about["waiting"]
        out += f"<p><b>{step['number']} {esc(step['name'])}</b> \u2192 ${esc(step['as'])}: {number(sum(len(t['rows']) for t in about['asked']))} labels asked for and given</p>"
        out += table(head, rows, (0, 1, 4, 5)) if rows else ""
        if waiting:
            out += f'<p class="bad">{number(len(waiting))} rows wait for an answer: {esc(_few(waiting))}</p>'
            command = f"trainlore label {esc(folder)} --out LABELS.jsonl --choices A,B"
            out += f"<p>Give them one, then run the recipe again: <code>{command}</code></p>"
    return out


def _round(told: dict) -> list[str]:
    counts = {k: told["labels"].count(k) for k in sorted(set(told["labels"]))}
    classes = ", ".join(f"{n} of class {k}" for k, n in counts.items())
    measures = [number(told.get("kappa")), number(told.get("entropy"))]
    return [str(told["round"]), number(len(told["rows"])), esc(_few(told["rows"])), esc(classes), *measures]


def _few(ids: list[int], most: int = 12) -> str:
    return ", ".join(map(str, ids[:most])) + (f" and {len(ids) - most} more" if len(ids) > most else "")
