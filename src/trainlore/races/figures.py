"""The pictures of a race, in the page's own ink."""

from __future__ import annotations

from typing import Any

import numpy as np

from trainlore.figures import COLOURS, INK, _axes, _label, _styled, _svg
from trainlore.races import profiles as reading

MARK = {"better": "#10b981", "worse": "#ef4444"}


@_styled
def forest(record: dict[str, Any]) -> str:
    """The effect of every arm with its interval, against a line of no difference."""
    effects = record["effects"]
    figure, (ax,) = _axes(8.5, 0.9 + 0.38 * len(effects))
    for at, e in enumerate(effects):
        low, high = e["interval"]
        colour = MARK.get(e["verdict"], INK)
        ax.plot([low, high], [at, at], color=colour, linewidth=2)
        ax.plot([e["difference"]], [at], marker="o", color=colour, markersize=6)
        for d in e["by_seed"]:
            ax.plot([d], [at + 0.22], marker="|", color=colour, alpha=0.5, markersize=5)
    ax.axvline(0, color=INK, linewidth=0.8)
    ax.set_yticks(range(len(effects)), [_label(e["arm"]) for e in effects])
    ax.invert_yaxis()
    ax.set_xlabel(f"better than {_label(record['baseline'])} by ({record['metric']})  →")
    return _svg(
        figure, "Advantage of each arm with its 95 % interval; small marks are single seeds; grey cannot be separated"
    )


@_styled
def curves(record: dict[str, Any]) -> str:
    """The validation score of every arm along steps and along work: the mean over seeds in the seeds' range."""
    arms = {
        n: a
        for n, a in record["arms"].items()
        if any(len(t) > 1 and t[-1]["score"] is not None for t in a["tracks"].values())
    }
    if not arms:
        return ""
    figure, axes = _axes(8.5, 3.2, 2)
    for ax, unit in zip(axes, ("steps", "work"), strict=True):
        for at, (name, arm) in enumerate(arms.items()):
            both = [reading.curve(arm, s, unit) for s in arm["scores"]]
            both = [(x, y) for x, y in both if len(x)]
            if not both:
                continue
            least = min(len(x) for x, _ in both)
            x = np.mean([x[:least] for x, _ in both], 0)
            y = np.array([y[:least] for _, y in both])
            colour = COLOURS[at % len(COLOURS)]
            ax.fill_between(x, y.min(0), y.max(0), color=colour, alpha=0.15, linewidth=0)
            ax.plot(x, y.mean(0), color=colour, linewidth=1.5, label=_label(name))
        ax.set_xlabel(unit if unit == "steps" else "work (FLOP, all networks)")
        ax.set_ylabel(f"validation {record['metric']}")
    axes[0].legend(fontsize=7)
    return _svg(figure, "Score on the validation rows along the training: mean and range over seeds")


@_styled
def front(record: dict[str, Any]) -> str:
    """Score against work: what each arm costs and what it gives, the front marked."""
    arms = {n: a for n, a in record["arms"].items() if a["scores"]}
    if len(arms) < 2:
        return ""
    sign = 1.0 if record["better"] == "higher" else -1.0
    work = {n: a["bill"]["work"] + ((a.get("search") or {}).get("work", 0.0)) for n, a in arms.items()}
    score = {n: float(np.mean(list(a["scores"].values()))) for n, a in arms.items()}
    figure, (ax,) = _axes(8.5, 3.0)
    for at, name in enumerate(arms):
        beaten = any(work[o] <= work[name] and sign * score[o] > sign * score[name] for o in arms)
        ax.plot(
            [work[name]],
            [score[name]],
            marker="o",
            markersize=5 if beaten else 9,
            color=COLOURS[at % len(COLOURS)],
            alpha=0.5 if beaten else 1,
        )
        ax.annotate(" " + _label(name), (work[name], score[name]), fontsize=8, va="center", color=INK)
    ax.set_xlabel("work (FLOP, all networks of the arm and its search)")
    ax.set_ylabel(record["metric"])
    ax.margins(x=0.25, y=0.2)
    return _svg(figure, "Cost and quality; large points are on the front: nothing is better for less")


@_styled
def profiles(record: dict[str, Any]) -> str:
    """Performance profiles over seeds: how often an arm reaches the target within so many times the best arm's work."""
    arms = record["targets"]["arms"]
    n = min(len(a["work"]) for a in arms.values())
    if n < 2 or len(arms) < 2:
        return ""
    grid = np.linspace(1.0, 3.0, 81)
    found = reading.profile({k: a["work"][:n] for k, a in arms.items()}, grid)
    figure, (ax,) = _axes(8.5, 2.6)
    for at, (name, share) in enumerate(found.items()):
        ax.step(grid, share, where="post", color=COLOURS[at % len(COLOURS)], label=_label(name))
    ax.set_xlabel("times the least work that any arm needed")
    ax.set_ylabel("share of seeds at the target")
    ax.set_ylim(-0.03, 1.03)
    ax.legend(fontsize=7)
    return _svg(figure, "Performance profiles: higher and further left is better")


@_styled
def tuning(record: dict[str, Any]) -> str:
    """The validation score of every trial of every arm."""
    tuned = {n: t for n, t in record["tuning"].items() if t["trials"]}
    if not tuned:
        return ""
    figure, (ax,) = _axes(8.5, 0.9 + 0.34 * len(tuned))
    for at, t in enumerate(tuned.values()):
        scores = [x["score"] for x in t["trials"] if x["score"] is not None and x["state"] == "finished"]
        ax.plot(scores, [at] * len(scores), "o", alpha=0.5, color=COLOURS[at % len(COLOURS)])
        if t["trials"][0]["score"] is not None:
            ax.plot([t["trials"][0]["score"]], [at], marker="|", markersize=14, color=INK)
    ax.set_yticks(range(len(tuned)), [_label(n) for n in tuned])
    ax.invert_yaxis()
    ax.set_xlabel(f"validation {record['metric']}")
    return _svg(figure, "Every trial of the search; the bar is the arm as it stood")
