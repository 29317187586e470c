"""Figures as inline SVG that take the page's own ink, so that they are readable in light and dark."""

from __future__ import annotations

import functools
import html
import io
import re
import warnings
from collections.abc import Callable
from typing import Any

INK = "#010203"  # stands for the page's ink while matplotlib draws
COLOURS = ("#3b82f6", "#f59e0b", "#10b981", "#ef4444", "#8b5cf6", "#06b6d4", "#d946ef", "#84cc16", "#f97316", "#64748b")


STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,  # a name with dollar signs is a name
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "trainlore",
}
LONGEST = 28  # letters of a label


def _styled(draw: Callable[..., str]) -> Callable[..., str]:
    """Draw in the page's style, and leave the reader's own settings of matplotlib as they are."""

    @functools.wraps(draw)
    def styled(*args: Any) -> str:
        import matplotlib
        from cycler import cycler

        style: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
        with (
            matplotlib.rc_context(style),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of letters the font has not: the browser's has them
            return draw(*args)

    return styled


def _axes(width: float = 8.0, height: float = 3.2, columns: int = 1, rows: int = 1) -> Any:
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns, squeeze=False).reshape(-1)


def _label(name: str) -> str:
    """A name as a legend can hold it; one that begins with an underscore would be left out."""
    text = " ".join(name.split()) or "(none)"
    text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return f" {text}" if text.startswith("_") else text


def _svg(figure: Any, caption: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    svg, caption = svg.replace(INK, "currentColor"), html.escape(caption)
    return f'<figure role="img" aria-label="{caption}">{svg}<figcaption>{caption}</figcaption></figure>'


def _smooth(values: list[float]) -> list[float]:
    import numpy as np

    width = max(1, len(values) // 40)
    padded = np.pad(np.asarray(values, float), (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, "valid").tolist()


@_styled
def curves(fits: list[dict[str, Any]], predicted: dict[str, dict[str, Any]]) -> str:
    """The loss of every training in a panel of its own, smoothed over raw; a prediction dashed over the curve it is of."""
    import math

    wide = [s for s in fits if s["as"] in predicted]
    rest = [s for s in fits if s["as"] not in predicted]
    out = ""
    for s in wide:
        figure, (ax,) = _axes(8.5, 3.2)
        note = predicted[s["as"]]
        _curve(ax, s, COLOURS[0])
        shown = [i for i, t in enumerate(note["curve"]["t"]) if t >= 0.05 * note["curve"]["t"][-1]]
        ax.plot(
            [note["curve"]["t"][i] for i in shown],
            [note["curve"]["predicted"][i] for i in shown],
            color=INK,
            linewidth=1.3,
            linestyle="--",
            label="law",
        )
        ax.axvline(note["fitted_to"], color=INK, linewidth=0.6, alpha=0.6)
        ax.annotate(" fitted to here", (note["fitted_to"], ax.get_ylim()[1]), va="top", fontsize=8, color=INK)
        ax.set_xlabel("step")
        ax.set_ylabel("loss (nats)")
        out += _svg(figure, f"Loss of ${s['as']}; dashed: the law fitted to the part left of the line")
    if rest:
        columns = 3
        rows = math.ceil(len(rest) / columns)
        figure, axes = _axes(8.5, 1.9 * rows, columns, rows)
        for at, ax in enumerate(axes):
            if at >= len(rest):
                ax.set_visible(False)
                continue
            _curve(ax, rest[at], COLOURS[at % len(COLOURS)])
            ax.set_title(rest[at]["as"], fontsize=9)
        out += _svg(figure, "Loss (nats) by step of the other trainings, smoothed over raw")
    return out


def _curve(ax: Any, step: dict[str, Any], colour: str) -> None:
    curve = step["curve"]
    ax.plot(curve["t"], curve["loss"], color=colour, alpha=0.3, linewidth=0.7)
    ax.plot(curve["t"], _smooth(curve["loss"]), color=colour, linewidth=1.6)


@_styled
def domains(steps: list[dict]) -> str:
    """Share of each domain after every step that made data, as stacked bars."""
    if not steps:
        return ""
    size: dict[str, float] = {}
    for s in steps:
        for d, v in s["data"]["domains"].items():
            size[d] = max(size.get(d, 0), v["size"])
    top = sorted(size, key=lambda d: -size[d])[:9]
    figure, (ax,) = _axes(8.5, 0.9 + 0.32 * len(steps))
    for row, s in enumerate(steps):
        whole, left = sum(v["size"] for v in s["data"]["domains"].values()) or 1.0, 0.0
        for at, d in enumerate([*top, "others"] if len(size) > len(top) else top):
            here = s["data"]["domains"]
            share = (
                here.get(d, {"size": 0})["size"]
                if d != "others"
                else sum(v["size"] for k, v in here.items() if k not in top)
            )
            ax.barh(
                row, share / whole, left=left, color=COLOURS[at], height=0.72, label=_label(d) if row == 0 else None
            )
            left += share / whole
    ax.set_yticks(range(len(steps)), [f"{s['number']} {s['name']}" for s in steps])
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("share of the text")
    ax.legend(ncols=5, fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure, "What the data are made of after each step, by domain")


@_styled
def lengths(steps: list[dict]) -> str:
    """How long the rows are after each step."""
    by_unit: dict[str, list[dict]] = {}
    for s in steps:
        by_unit.setdefault(s["data"]["unit"], []).append(s)
    if not by_unit:
        return ""
    figure, axes = _axes(8.5, 2.6, len(by_unit))
    for ax, (unit, mine) in zip(axes, by_unit.items(), strict=True):
        for s in mine[-6:]:
            edges, counts = s["data"]["lengths"]["edges"], s["data"]["lengths"]["counts"]
            whole = sum(counts) or 1
            ax.stairs([c / whole for c in counts], edges, label=f"{s['number']} {s['name']}")
        ax.set_xlabel(f"{unit} a row")
        ax.set_ylabel("share of rows")
        ax.legend(fontsize=7)
    return _svg(figure, "How long the rows are after each step")


@_styled
def bins(step: dict) -> str:
    """Reliability of a calibration report: confidence against how often it was right."""
    for m in step.get("report", []):
        found = m["notes"].get("bins")
        if not found or not all("confidence" in b and "accuracy" in b for b in found):
            continue
        figure, (ax,) = _axes(3.6, 3.0)
        shown = [b for b in found if b.get("count", 1)]
        ax.plot([0, 1], [0, 1], color=INK, linewidth=0.6, alpha=0.6)
        ax.plot([b["confidence"] for b in shown], [b["accuracy"] for b in shown], marker="o", markersize=3)
        ax.set_xlabel("confidence")
        ax.set_ylabel("share right")
        return _svg(figure, f"Calibration of ${step['wires'].get('model', '')}: on the line is calibrated")
    return ""


# ---- what a step kept and dropped (see trainlore.looking)

KEPT, LOST = COLOURS[2], "#94a3b8"
HEAT = (
    "#6366f1",
    "#3b82f6",
    "#06b6d4",
    "#10b981",
    "#84cc16",
    "#f59e0b",
    "#ef4444",
)  # low to high, none of them near black or white


@_styled
def scores(score: dict[str, Any]) -> str:
    """A score among kept and dropped rows, one upon the other, and the cut."""
    figure, (ax,) = _axes(4.6, 2.4)
    both = [k + d for k, d in zip(score["kept"], score["dropped"], strict=True)]
    ax.stairs(both, score["edges"], baseline=score["dropped"], fill=True, color=KEPT, label="kept")
    ax.stairs(score["dropped"], score["edges"], fill=True, color=LOST, label="dropped")
    ax.set_xlabel(_label(score["name"]))
    ax.set_ylabel("rows")
    cut = score["cut"]
    caption = f"{score['name']}: no single cut parts the kept rows from the dropped ones"
    if cut is not None:
        ax.axvline(cut["at"], color=INK, linewidth=1.2, linestyle="--", label="cut")
        side, other = ("below", "above") if cut["higher"] else ("above", "below")
        caption = f"{score['name']}, cut at {cut['at']:.4g}: {cut['kept']:,} kept rows {side} it, {cut['dropped']:,} dropped rows {other} it"
    ax.legend(fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure, caption)


@_styled
def shares(found: dict[str, Any]) -> str:
    """The share of each domain in the rows before and after a step."""
    rows = found["rows"]
    figure, (ax,) = _axes(4.6, max(2.4, 0.9 + 0.3 * len(rows)))
    for key, colour, shift in (("before", LOST, -0.2), ("after", KEPT, 0.2)):
        whole = sum(r[key] for r in rows) or 1
        ax.barh(
            [i + shift for i in range(len(rows))], [100 * r[key] / whole for r in rows], 0.38, color=colour, label=key
        )
    ax.set_yticks(range(len(rows)), [_label(r["name"]) for r in rows])
    ax.invert_yaxis()
    ax.set_xlabel("% of the rows")
    ax.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return _svg(figure, f"What the rows are by {found['column']}, before and after")


def cloud(found: dict[str, Any], score: str, column: str) -> str:
    """A map of the pool, coloured by domain, by score and by choice. Dots are bare path data, so that a thousand weigh little."""
    dots = [f"M{x} {y}h0" for x, y in zip(found["x"].split(), found["y"].split(), strict=True)]
    panels = []
    if len(found.get("names", ())) > 1:
        of = [int(d) for d in found["domain"].split()]
        names = [*found["names"], "others"] if max(of) >= len(found["names"]) else found["names"]
        colours = [*COLOURS[: len(found["names"])], LOST]
        panels.append(_dots(f"by {column}", dots, of, colours, [_chip(c) + n for n, c in _legend(names, colours)]))
    if "score" in found:
        step = [int(s) * len(HEAT) // 100 if int(s) >= 0 else len(HEAT) for s in found["score"].split()]
        panels.append(
            _dots(f"by {score}", dots, step, [*HEAT, LOST], [f"lowest {''.join(map(_chip, HEAT))} highest rank"])
        )
    chosen = [int(k) for k in found["kept"].split()]
    panels.append(_dots("by choice", dots, chosen, [LOST, KEPT], [_chip(LOST) + "dropped", _chip(KEPT) + "kept"]))
    return "".join(panels)


def _legend(names: list[str], colours: list[str]) -> list[tuple[str, str]]:
    return [(html.escape(_label(name)), colour) for name, colour in zip(names, colours, strict=False)]


def _chip(colour: str) -> str:
    return f'<i class="chip" style="background:{colour}"></i>'


def _dots(title: str, dots: list[str], group: list[int], colours: list[str], legend: list[str]) -> str:
    """One colouring of the map, a path of dots a group and the large groups first, with a legend that is already HTML."""
    members = [[d for d, mine in zip(dots, group, strict=True) if mine == at] for at in range(len(colours))]
    paths = "".join(
        f'<path d="{"".join(members[at])}" stroke="{colours[at]}" style="stroke-linecap:round"/>'
        for at in sorted(range(len(colours)), key=lambda at: -len(members[at]))
        if members[at]
    )
    frame = (
        '<rect x="-14" y="-14" width="1028" height="778" rx="12" stroke="currentColor" stroke-width="2" opacity=".25"/>'
    )
    svg = f'<svg viewBox="-16 -16 1032 782" width="100%" fill="none" stroke-width="13">{frame}{paths}</svg>'
    words = " ".join(f'<span class="of">{one}</span>' for one in legend)
    title = html.escape(title)
    return f'<figure role="img" aria-label="{title}">{svg}<figcaption><b>{title}</b> {words}</figcaption></figure>'


@_styled
def sizes(record: dict[str, Any]) -> str:
    """Size against change of loss, a point a form that was tried, the goal as a line and the front joined."""
    figure, (ax,) = _axes(8.5, 3.6)
    points, front = record["points"], set(record["front"])
    for at, method in enumerate(dict.fromkeys(p["method"] for p in points)):
        mine = [p for p in points if p["method"] == method]
        x, y = [p["bytes"] / 1e6 for p in mine], [p["change"] for p in mine]
        colour = COLOURS[at % len(COLOURS)]
        ax.errorbar(x, y, [p["stderr"] for p in mine], fmt="o", markersize=5, color=colour, label=_label(method))
    best = sorted((p for p in points if p["name"] in front), key=lambda p: p["bytes"])
    ax.plot([p["bytes"] / 1e6 for p in best], [p["change"] for p in best], color=INK, linewidth=0.8, alpha=0.6)
    chosen = next(p for p in points if p["name"] == record["chosen"])
    ax.plot([chosen["bytes"] / 1e6], [chosen["change"]], marker="o", markersize=13, fillstyle="none", color=INK)
    ax.axhline(record["allowed"], color=INK, linewidth=0.8, linestyle="--")
    ax.annotate(" the goal", (ax.get_xlim()[1], record["allowed"]), fontsize=8, va="bottom", ha="right", color=INK)
    ax.set_yscale("symlog", linthresh=max(1e-4, record["allowed"]))
    ax.set_xlabel("MB")
    ax.set_ylabel("change of loss")
    ax.legend(frameon=False, fontsize=8)
    return _svg(figure, "Size and quality of every form tried; the ring is the smallest within the goal")
