"""What the engine saw: the cost of every step, which switches acted, and whether changes of form kept the outputs."""

from __future__ import annotations

from trainlore.page.pieces import big, esc, number, table


def cost(record: dict) -> str:
    """What each step took: work, tokens, time, memory."""
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


def switches(record: dict) -> str:
    """What each part of each training changed, and which changed nothing."""
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


def parity(record: dict) -> str:
    """How far each change of form moved the outputs, and whether it was allowed to."""
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
