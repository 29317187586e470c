"""What became of the models: verdicts against rivals, losses, measurements, samples of what they write."""

from __future__ import annotations

from typing import Any

from trainlore import figures
from trainlore.page.pieces import esc, number, table


def verdicts(record: dict) -> str:
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


def losses(record: dict) -> str:
    """The curves of all trainings, and what was predicted of them."""
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


def measurements(record: dict) -> str:
    """Every number that was measured, but those that have a section of their own."""
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


def samples(record: dict) -> str:
    """What the models write after the same prompts, side by side."""
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
