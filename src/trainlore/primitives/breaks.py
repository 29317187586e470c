"""Where a text breaks: what a reader of characters is taught, the reader, its chances for every place, and the cuts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from trainlore.nouns import Data
from trainlore.primitives.prose import chunks

if TYPE_CHECKING:
    from trainlore.nouns import Model
    from trainlore.runs import Run

DILATIONS = 1, 3, 9, 27
REACH = 2 * sum(DILATIONS)  # characters to either side that the reader sees
STRIDE, BUCKETS = 2048, 2048  # characters of a window that are judged; rows of each table of embeddings
ROWS, CHARACTERS = 4096, 1 << 20  # texts read together
BREAK = 1  # the label of a character before a line break; 0 is nothing, 2 and up are marks


def taught(
    text: str, marks: str, remove: float, blank: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """What the reader sees of a text and what it must say of each character: codes (N,) and labels (N,), int64.

    A share `blank` of the line breaks become blanks, the others go without trace, as do a share `remove` of the marks.
    A character before a break, or before a lost mark before one, is labelled BREAK; before a mark 2 + its place in
    `marks`; else 0.
    """
    code = _codes(re.sub(r"\s*\n\s*", "\n", text.strip()))
    mark, line = np.full(len(code), -1), code == 10
    for k, m in enumerate(marks):
        mark[code == ord(m)] = k
    draw = rng.random(len(code))
    lost = (mark >= 0) & (draw < remove)
    stays = ~lost & ~(line & (draw >= blank))
    there = np.where(lost, len(code), np.arange(len(code)))
    after = np.append(np.minimum.accumulate(there[::-1])[::-1], [len(code)])[1:]  # the next place that is no lost mark
    line, mark = np.append(line, False), np.append(mark, -1)
    label = np.where(line[after], BREAK, np.where(mark[1:] >= 0, mark[1:] + 2, 0))
    label[line[:-1]] = 0  # the blank in place of a break
    return np.where(line[:-1], 32, code)[stays], label[stays]


def cuts(p: np.ndarray, text: str, threshold: float) -> list[str]:
    """The text, stripped, cut at line breaks and after characters whose chance p (len(text),) reaches `threshold`."""
    ends = (p >= threshold) | (_codes(text) == 10)
    at = [0, *(np.flatnonzero(ends[:-1]) + 1).tolist(), len(text)]
    return [piece for a, b in pairwise(at) if (piece := text[a:b].strip())]


def fitted(p: np.ndarray, end: np.ndarray) -> float:
    """The threshold at which p >= threshold finds the true ends, bool (N,), with the highest F1."""
    order = np.argsort(-p, kind="stable")
    score = 2 * np.cumsum(end[order]) / (np.arange(1, len(p) + 1) + end.sum())
    score[:-1][p[order][1:] == p[order][:-1]] = 0  # a threshold cannot part equals
    return float(p[order[score.argmax()]])


class Reader(nn.Module):
    """A stack of dilated convolutions over hashed characters that looks both ways: codes + 1 (B, T), 0 for none, to
    logits (B, T, 1 + classes): of a break, and of what mark follows."""

    main_input_name = "input_ids"

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(BUCKETS, width) for _ in range(2))
        self.layers = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2 * d, dilation=d) for d in DILATIONS)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in DILATIONS)
        self.out = nn.Linear(width, 1 + classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        there = (input_ids > 0)[..., None].float()
        hashed = (input_ids % BUCKETS, (input_ids * 40503 >> 7) % BUCKETS)  # two characters rarely share both
        x = sum(table(h) for table, h in zip(self.tables, hashed, strict=True)) * there
        for layer, norm in zip(self.layers, self.norms, strict=True):
            y = (norm(x) * there).transpose(1, 2)
            x = x + F.gelu(layer(y)).transpose(1, 2) * there  # nothing outside the text speaks, however it is padded
        return self.out(x)


def chances(run: Run, model: Model, texts: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Each text with the chance of a break after each of its characters, (len(text),) float32."""
    for held in chunks(texts, ROWS, CHARACTERS):
        yield from zip(held, look(run, model, held), strict=True)


def look(run: Run, model: Model, texts: list[str]) -> list[np.ndarray]:
    """The same for a list of texts, laid in a row with gaps, in windows that overlap by what the reader sees."""
    gap = np.zeros(REACH, np.int64)
    stream = np.concatenate([gap, *(part for t in texts for part in (_codes(re.sub(r"\s", " ", t)) + 1, gap))])
    stream = np.pad(stream, (0, -(len(stream) - REACH) % STRIDE + REACH))
    windows = np.lib.stride_tricks.sliding_window_view(stream, STRIDE + 2 * REACH)[::STRIDE]
    rows = Data.of({"input_ids": windows.copy()})
    p = run.infer(model, rows, lambda batch, out: out[:, REACH : REACH + STRIDE, 0].float().sigmoid(), size=8)
    at = np.cumsum([0, *(len(t) + REACH for t in texts)])
    return [p.numpy().reshape(-1)[a : a + len(t)] for a, t in zip(at.tolist(), texts, strict=False)]


def _codes(text: str) -> np.ndarray:
    """The code point of each character, int64 (N,)."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
