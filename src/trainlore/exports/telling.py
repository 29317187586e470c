"""What the gate of an export found, in sentences and as a page."""

from __future__ import annotations

from typing import Any


def told(record: dict[str, Any]) -> list[str]:
    """The record in a few plain lines: parity, the metric, size, speed."""
    unit = record["counted"]
    lines = [
        f"{record['runtime']}: relative distance of the logits {record['distance']:.1e}, {record['tolerance']:.1e} "
        f"allowed, on {record['rows']['count']} rows {record['rows']['whose']}"
    ]
    if "loss_change" in record:
        line = f"loss {record['loss_before']:.4f} before, change {record['loss_change']:+.2g}"
        if "loss_interval" in record:
            low, high = record["loss_interval"]
            line += f" (95 %: {low:+.2g} to {high:+.2g})"
        lines.append(line)
    if "agreement" in record:
        lines.append(f"the same answer first in {record['agreement']:.1%} of places")
    lines.append(f"{record['bytes'] / 1e6:,.2f} MB on disk, {record['bytes_before'] / 1e6:,.2f} MB of weights before")
    lines.append(
        f"{record['tokens_per_second']:,.0f} {unit} a second there, {record['tokens_per_second_before']:,.0f} here "
        f"(one pass over those rows, {record['threads']} thread{'s' if record['threads'] > 1 else ''})"
    )
    return lines


def page(record: dict[str, Any]) -> str:
    """The report of an export: before and after, side by side."""
    from trainlore.page.pieces import CSS, esc, table

    unit = record["counted"]
    rows = [
        ["MB", f"{record['bytes_before'] / 1e6:,.2f}", f"{record['bytes'] / 1e6:,.2f}", "weights; all files"],
        [
            f"{unit} a second",
            f"{record['tokens_per_second_before']:,.0f}",
            f"{record['tokens_per_second']:,.0f}",
            f"one pass over the rows, threads: {record['threads']}",
        ],
    ]
    if "loss_change" in record:
        was, moved = record["loss_before"], record["loss_change"]
        low, high = record.get("loss_interval", (float("nan"),) * 2)
        rows.insert(
            0,
            [
                "loss",
                f"{was:.4f}",
                f"{was + moved:.4f}",
                f"paired change {moved:+.2g}, 95 %: {low:+.2g} to {high:+.2g}",
            ],
        )
    rows.insert(0, ["distance of the logits", "", f"{record['distance']:.1e}", f"{record['tolerance']:.1e} allowed"])
    if "agreement" in record:
        rows.insert(1, ["same answer first", "", f"{record['agreement']:.1%}", "of all places"])
    body = table(["", "before", esc(record["runtime"]), ""], [[esc(c) for c in row] for row in rows], (1, 2))
    head = f"{record['model']} as {record['format']}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>exported</title><style>{CSS}</style></head><body><main>'
        f"<h1>{esc(head)}</h1><p>Both read the same {record['rows']['count']} rows {esc(record['rows']['whose'])}.</p>"
        f"{body}</main></body></html>"
    )
