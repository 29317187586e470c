"""Domains: the groups that rows belong to by name, and how to draw every group by its share.

A *code* is the number of a row's domain among the sorted names. A *share* is what part of the draws a domain gets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from trainlore.errors import Bad
from trainlore.primitives.losses import per_row, rowwise

if TYPE_CHECKING:
    from trainlore.nouns import Data, Model
    from trainlore.runs import Run


def domains(data: Data, by: str, who: str) -> tuple[list[str], np.ndarray]:
    """The names of the domains, sorted, and the code of each row, int64 (N,). `who` asks, for the message."""
    data.need(by, who=who)
    column = data[by]
    if isinstance(column, np.ndarray):
        if column.ndim != 1:
            raise Bad(f"{who}: column {by!r} holds lists; a domain is one name a row")
        names, code = np.unique(column, return_inverse=True)
        return [str(n) for n in names], code.astype(np.int64)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise Bad(f"{who}: column {by!r} holds {column.type}; a domain is one name a row")
    if column.null_count:
        raise Bad(f"{who}: column {by!r} names no domain in {column.null_count:,} rows: fill it, or drop them")
    found = sorted(column.unique().to_pylist())
    return found, pc.index_in(column, value_set=pa.array(found, column.type)).to_numpy().astype(np.int64)


def codes_of(data: Data, by: str, names: Sequence[str], who: str) -> np.ndarray:
    """The code of each row among `names`, int64 (N,); raises Bad unless the rows have exactly these domains."""
    found, code = domains(data, by, who)
    if sorted(found) != sorted(names):
        raise Bad(f"{who} has the domains {', '.join(found)}, not {', '.join(names)}: give rows of each")
    return np.array([list(names).index(n) for n in found])[code]


def named_shares(names: Sequence[str], shares: Mapping[str, float], count: np.ndarray, who: str) -> np.ndarray:
    """Shares float64 (K,) as named in `shares`; what they leave goes to the others in proportion to `count` (K,)."""
    if strange := sorted(set(shares) - set(names)):
        raise Bad(f"{who}: shares names {', '.join(strange)}; the domains are {', '.join(names)}")
    given = np.array([shares.get(n, np.nan) for n in names], np.float64)
    named, total = ~np.isnan(given), np.nansum(given)
    if (given[named] < 0).any() or total > 1 + 1e-6 or (named.all() and total < 1 - 1e-6):
        raise Bad(f"{who}: shares must be at least 0 and sum to 1 (to less if some are left out), not to {total:g}")
    rest = np.where(named, 0.0, count)
    return np.where(named, given, (1 - total) * rest / max(rest.sum(), 1e-12))


def exponentiated(shares: Tensor, gain: Tensor, eta: float, floor: float = 0.0) -> Tensor:
    """Shares float64 (K,) after a step of exponentiated gradient: shares_j * exp(eta * gain_j), made to sum to 1.

    The part `floor` of them is spread evenly.
    """
    raised = (shares.double().log() + eta * gain.double()).softmax(0)
    return (1 - floor) * raised + floor / len(raised)


def row_odds(code: Tensor, shares: Tensor, count: Tensor | None = None) -> Tensor:
    """Odds (N,) under which each domain is drawn by its share: shares (K,) over the rows of each, at each row's code.

    `code` int64 (N,). `count` (K,), the rows of each domain, is counted where it is not given.
    """
    count = torch.bincount(code, minlength=len(shares)) if count is None else count
    if len(empty := torch.nonzero((count == 0) & (shares > 0)).flatten()):
        raise Bad(
            f"domain {int(empty[0])} has a share of {float(shares[empty[0]]):g} and no rows: drop it, or add rows"
        )
    return (shares / count.clamp(min=1))[code]


def mixed_rows(code: np.ndarray, shares: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Positions int64 (n,) of rows that make up shares (K,) as exactly as whole rows can; `code` int64 (N,).

    A domain's rows are drawn in random order, and again in another order once all came.
    """
    exact = np.asarray(shares, np.float64) * n
    want = np.floor(exact + 1e-9).astype(np.int64)
    want[np.argsort(want - exact, kind="stable")[: n - want.sum()]] += 1  # whole rows to the largest remainders
    picked = [np.zeros(0, np.int64)]
    for k in np.flatnonzero(want):
        own = np.flatnonzero(code == k)
        if not len(own):
            raise Bad(f"domain {k} has a share of {shares[k]:g} and no rows: drop it, or add rows")
        again = -(-want[k] // len(own))
        picked.append(np.concatenate([generator.permutation(own) for _ in range(again)])[: want[k]])
    return np.concatenate(picked)


def domain_means(values: Tensor, code: Tensor, k: int) -> Tensor:
    """Mean of values (N, ...) over the rows of each of k domains: float64 (k, ...)."""
    sums = torch.zeros(k, *values.shape[1:], dtype=torch.float64).index_add_(0, code, values.double())
    count = torch.bincount(code, minlength=k)
    return sums / count.reshape(-1, *[1] * (values.dim() - 1))


def domain_losses(run: Run, model: Model, data: Data, code: np.ndarray, k: int) -> Tensor:
    """Mean over its rows of each domain's loss, float64 (k,); one pass over `data`, whose rows have `code` (N,)."""
    rows = run.infer(model, data, lambda batch, out: per_row(rowwise(model.kind, batch, out), batch, model.kind))
    return domain_means(rows, torch.from_numpy(code), k)
