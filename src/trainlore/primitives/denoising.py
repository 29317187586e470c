"""Hiding spans of token rows and asking for them back: whole batches of rows of any length at once."""

from __future__ import annotations

import torch
from torch import Tensor

MODES = ("R", "S", "X")  # short spans, the end, long spans or many


def span_counts(lengths: Tensor, rate: Tensor, span: Tensor) -> tuple[Tensor, Tensor]:
    """How many tokens of a row are hidden, and in how many spans: three (B,) -> two int64 (B,); 0 in rows of under two."""
    hidden = torch.minimum((lengths * rate).round().long().clamp(min=1), lengths - 1)
    spans = torch.minimum((hidden / span).round().long().clamp(min=1), torch.minimum(hidden, lengths - hidden))
    short = lengths < 2
    return hidden.masked_fill(short, 0), spans.masked_fill(short, 0)


def span_mask(lengths: Tensor, rate: Tensor, span: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Which tokens are hidden: bool (B, width), spans kept and hidden in turn, kept first and hidden last.

    lengths int64 (B,), rate and span (mean length) float (B,). As in T5 the numbers of tokens and spans are fixed and
    all cuts into that many non-empty spans are alike.
    """
    hidden, spans = span_counts(lengths, rate, span)
    most = int(spans.max()) if len(spans) else 0
    turns = torch.stack(
        [_cut(lengths - hidden, spans, width, most, generator), _cut(hidden, spans, width, most, generator)], dim=2
    ).reshape(len(lengths), 2 * most)
    starts = turns.cumsum(1)[:, :-1] if most else turns
    flips = torch.zeros(len(lengths), width + 1, dtype=torch.long)
    flips.scatter_(
        1, starts.clamp(max=width), (starts < lengths[:, None]).long()
    )  # a row's unused spans start at its end
    return (flips[:, :width].cumsum(1) % 2 == 1) & (torch.arange(width) < lengths[:, None])


def _cut(items: Tensor, pieces: Tensor, width: int, most: int, generator: torch.Generator) -> Tensor:
    """Lengths of `pieces` (B,) non-empty pieces of `items` (B,), every cut alike: int64 (B, most), 0 past the last."""
    place = torch.arange(1, width)
    key = torch.rand(len(items), width - 1, generator=generator).masked_fill(place >= items[:, None], 2.0)
    first = key.argsort(1).argsort(1) < (pieces - 1)[:, None]
    piece = torch.cat([torch.zeros(len(items), 1, dtype=torch.long), first.long().cumsum(1)], 1)
    inside = (torch.arange(width) < items[:, None]).long()
    return torch.zeros(len(items), max(most, 1), dtype=torch.long).scatter_add_(1, piece * inside, inside)[:, :most]


def tail_mask(lengths: Tensor, rate: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Hide the end of each row (prefix language modelling): bool (B, width).

    What is kept is uniform between (1 - 2 rate) of the row and all but its last token, so `rate` is the mean share hidden.
    """
    most = (lengths - 1).clamp(min=0)
    least = torch.minimum(most, ((1 - 2 * rate).clamp(min=0) * most).round().long().clamp(min=1))
    kept = (least + (torch.rand(len(lengths), generator=generator) * (most - least + 1)).long()).clamp(min=1)
    place = torch.arange(width)
    return (place >= kept[:, None]) & (place < lengths[:, None])


def replace_runs(ids: Tensor, mask: Tensor, lengths: Tensor, sentinels: Tensor, mark: Tensor) -> tuple[Tensor, Tensor]:
    """Each run of masked tokens becomes one sentinel, the first run the first sentinel; rows not to `mark` just lose them.

    ids (B,T), mask bool (B,T), lengths (B,), sentinels (S,), mark bool (B,) -> ids (B,W) padded with 0, lengths (B,).
    With the opposite mask the same call makes the targets.
    """
    valid = torch.arange(ids.shape[1]) < lengths[:, None]
    mask = mask & valid
    first = mask & ~torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], 1)
    run = (first.long().cumsum(1) - 1).clamp(min=0, max=len(sentinels) - 1)
    keep = (valid & ~mask) | (first & mark[:, None])
    tokens = torch.where(first, sentinels[run], ids)
    made = keep.sum(1)
    out = torch.zeros(len(ids), int(made.max()), dtype=ids.dtype)
    out[torch.arange(out.shape[1]) < made[:, None]] = tokens[keep]
    return out, made


def joined(pieces: list[tuple[Tensor, Tensor]], pad: int, width: int | None = None) -> Tensor:
    """Rows (B,W_i) of given lengths (B,) one after another, padded on the right: (B, width or the longest)."""
    total = torch.stack([n for _, n in pieces]).sum(0)
    out = torch.full((len(total), width or int(total.max())), pad, dtype=pieces[0][0].dtype)
    at = torch.zeros_like(total)
    place = torch.arange(out.shape[1])
    for ids, n in pieces:
        inside = (place >= at[:, None]) & (place < (at + n)[:, None])
        out[inside] = ids[torch.arange(ids.shape[1]) < n[:, None]]
        at = at + n
    return out


def fitting(width: int, span: float, rate: float) -> int:
    """The most tokens of a row that, with its mode token and two sentinels a span (none if endless), take at most `width` places."""
    lengths = torch.arange(width + 1)
    _, spans = span_counts(lengths, torch.tensor(rate), torch.tensor(span))
    taken = lengths + 1 + (2 * spans if span < float("inf") else 0)
    return int((taken <= width).nonzero().max()) if width else 0


def denoised(
    ids: Tensor,
    lengths: Tensor,
    which: Tensor,
    span: Tensor,
    rate: Tensor,
    specials: Tensor,
    generator: torch.Generator,
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Inputs and targets of rows, each under its own denoiser, both as (ids padded with 0, lengths (B,)).

    ids (B,T), lengths (B,), which (B,) of R, S, X, span and rate (B,), specials: token ids of R, S, X and the sentinels.
    """
    modes, sentinels = specials[:3], specials[3:]
    sequential = which == MODES.index("S")
    width = ids.shape[1]
    hide = torch.where(
        sequential[:, None],
        tail_mask(lengths, rate, width, generator),
        span_mask(lengths, rate, span, width, generator),
    )
    kept = replace_runs(ids, hide, lengths, sentinels, ~sequential)
    asked = replace_runs(ids, ~hide, lengths, sentinels, ~sequential)
    one = torch.ones_like(lengths)
    return (joined([(modes[which][:, None], one), kept], 0), kept[1] + 1), asked
