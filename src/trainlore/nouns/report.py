"""Report: tidy measurements, one value a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Measured:
    """One metric over rows. `values` float (N,); `rows` their ids (N,) or None; `groups` names one group a row."""

    metric: str
    values: np.ndarray
    better: str = "higher"  # "higher", "lower", or "" when neither is
    rows: np.ndarray | None = None
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Mapping[str, Any] = field(default_factory=dict)  # what JSON can hold: curves, fits, bins
    weights: np.ndarray | None = None  # how much each row counts in the mean (tokens, say)

    @property
    def value(self) -> float:
        """The (weighted) mean over rows."""
        return _mean(self.values, self.weights)

    @property
    def stderr(self) -> float:
        """Standard error of the mean over rows; NaN below two rows."""
        n = len(self.values)
        if n < 2 or (self.weights is not None and not self.weights.sum()):
            return float("nan")
        if self.weights is None:
            return float(self.values.std(ddof=1) / n**0.5)
        share = self.weights / self.weights.sum()  # of a ratio estimator
        return float(np.sqrt((share**2 * (self.values - self.value) ** 2).sum() * n / (n - 1)))

    def by(self, group: str) -> dict[str, float]:
        """The mean in each group."""
        names = np.asarray(self.groups[group])
        return {
            str(g): _mean(self.values[names == g], None if self.weights is None else self.weights[names == g])
            for g in sorted(set(names.tolist()))
        }


def _mean(values: np.ndarray, weights: np.ndarray | None) -> float:
    """The (weighted) mean; NaN of no rows, or of rows that count for nothing."""
    if not len(values) or (weights is not None and not weights.sum()):
        return float("nan")
    return float(np.average(values, weights=weights))


@dataclass(frozen=True, eq=False)
class Report:
    """Measurements in the order they were made; the first is what `value` speaks of."""

    measured: tuple[Measured, ...]

    @staticmethod
    def of(
        metric: str,
        values: Any,
        better: str = "higher",
        rows: Any = None,
        groups: Mapping[str, Sequence[str]] | None = None,
        notes: Mapping[str, Any] | None = None,
        weights: Any = None,
    ) -> Report:
        """A report of one metric; tensors and lists are taken as float64 arrays."""

        def array(v: Any) -> Any:
            v = v.detach().cpu().double().numpy() if hasattr(v, "detach") else v
            return None if v is None else np.atleast_1d(np.asarray(v, dtype=np.float64))

        ids = None if rows is None else np.asarray(rows)
        return Report(
            (Measured(metric, array(values), better, ids, dict(groups or {}), dict(notes or {}), array(weights)),)
        )

    @staticmethod
    def join(*reports: Report) -> Report:
        """All their measurements, in order."""
        return Report(tuple(m for r in reports for m in r.measured))

    def __getitem__(self, metric: str) -> Measured:
        for m in self.measured:
            if m.metric == metric:
                return m
        raise KeyError(f"no metric {metric!r}; there are {', '.join(m.metric for m in self.measured)}")

    @property
    def value(self) -> float:
        """The mean of the first metric."""
        return self.measured[0].value

    def summary(self) -> list[dict[str, Any]]:
        """One object a metric: metric, value, stderr, n, better, groups, notes."""
        return [
            {
                "metric": m.metric,
                "value": m.value,
                "stderr": m.stderr,
                "n": len(m.values),
                "better": m.better,
                "groups": {g: m.by(g) for g in m.groups},
                "notes": dict(m.notes),
            }
            for m in self.measured
        ]

    def __repr__(self) -> str:
        return "Report(" + ", ".join(f"{m.metric}={m.value:.4g} (n={len(m.values)})" for m in self.measured) + ")"
