"""Edits of text, a word or a character at a time, for all rows at once: swap, leave out, put in, exchange, mistype.

A corpus is one flat array of word numbers with offsets (`Words`), so that no edit loops over rows. The synonyms are a
mapping somebody gives, or the nearest words by how they are used in the corpus itself (`neighbours`). Every edit takes a
NumPy generator and changes nothing it is given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from trainlore.errors import Bad

if TYPE_CHECKING:
    from trainlore.nouns import Data

__all__ = ["STOP", "Kin", "Words", "added", "delete", "exchange", "insert", "neighbours", "swap", "synonyms", "typos"]

STOP = frozenset(
    """
    a about above after again against all am an and any are as at be because been before being below between both but by
    can could did do does doing down during each few for from further had has have having he her here hers herself him
    himself his how i if in into is it its itself just me more most my myself no nor not now of off on once only or other
    our ours ourselves out over own same she should so some such than that the their theirs them themselves then there
    these they this those through to too under until up very was we were what when where which while who whom why will
    with would you your yours yourself yourselves
    """.split()  # noqa: SIM905
)


@dataclass(frozen=True)
class Words:
    """Rows of words: numbers (sum of lengths,) int32, offsets (N+1,) int64, and the word that each number stands for."""

    values: np.ndarray
    offsets: np.ndarray
    names: list[str]

    @staticmethod
    def of(texts: Iterable[str]) -> Words:
        """Split texts at white space."""
        known: dict[str, int] = {}
        parts, lengths = [np.zeros(0, np.int32)], []
        for text in texts:
            words = text.split()
            parts.append(np.fromiter((known.setdefault(w, len(known)) for w in words), np.int32, len(words)))
            lengths.append(len(words))
        return Words(np.concatenate(parts), _offsets(np.array(lengths, np.int64)), list(known))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Words of each row, int64 (N,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """The row each word is in, int64 (sum of lengths,)."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def take(self, positions: np.ndarray) -> Words:
        """These rows, in this order; a row may come again."""
        start, length = self.offsets[positions], self.lengths[positions]
        offsets = _offsets(length)
        return replace(
            self, values=self.values[np.repeat(start - offsets[:-1], length) + np.arange(offsets[-1])], offsets=offsets
        )

    def texts(self) -> list[str]:
        """The rows as strings, one space between two words."""
        names = np.array(self.names, dtype=object)[self.values] if self.names else np.zeros(0, object)
        return [" ".join(names[a:b]) for a, b in zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist())]


@dataclass(frozen=True)
class Kin:
    """For each of V words the words that may stand in for it: numbers (M,) int32 and offsets (V+1,) int64."""

    values: np.ndarray
    offsets: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """How many each word has, int64 (V,)."""
        return np.diff(self.offsets)

    def draw(self, words: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One stand-in, evenly drawn, for each of these words (n,), which must have some."""
        return self.values[self.offsets[words] + _below(self.counts[words], rng)]


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _below(limit: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A whole number in [0, limit) for each limit."""
    return (rng.random(len(limit)) * limit).astype(np.int64)


# ---- where synonyms come from


def synonyms(words: Words, given: Mapping[str, Sequence[str]]) -> tuple[Words, Kin]:
    """The stand-ins that a mapping names. The words it brings in get numbers after those of `words`.

    A word is looked up as it is written, then in lower case; a word does not stand in for itself.
    """
    names = list(words.names)
    known = {w: i for i, w in enumerate(names)}
    found: list[list[int]] = []
    for word in words.names:
        others = given.get(word, given.get(word.lower(), ()))
        for other in others:
            if other not in known:
                known[other] = len(names)
                names.append(other)
        found.append([known[o] for o in others if o != word])
    found += [[]] * (len(names) - len(found))
    flat = np.array([i for own in found for i in own], np.int32)
    return replace(words, names=names), Kin(flat, _offsets(np.array([len(own) for own in found], np.int64)))


def neighbours(words: Words, k: int = 5, dims: int = 50, window: int = 2, least: int = 2) -> Kin:
    """The k words used most alike, for every word that comes at least `least` times.

    Words are alike that have the same words before them and the same words after them, at most `window` away: by the cosine
    of their positive pointwise mutual information with those, in its leading `dims` singular directions. Memory: the pairs
    seen, and 4 * V * dims bytes.
    """
    import torch
    from scipy import sparse
    from scipy.sparse.linalg import svds

    from trainlore.primitives.neighbours import nearest

    n, row = len(words.names), words.rows
    pairs = sparse.csr_matrix((n, n))
    for apart in range(1, window + 1):
        together = np.flatnonzero(row[apart:] == row[: len(row) - apart]) if len(row) > apart else np.zeros(0, np.int64)
        a, b = words.values[together], words.values[together + apart]
        pairs += sparse.coo_matrix((np.ones(len(a)), (a, b)), (n, n)).tocsr()
    pairs = sparse.hstack([pairs, pairs.T]).tocoo()  # who comes after, and who before: "red car" makes them no kin
    often = np.flatnonzero(np.bincount(words.values, minlength=n) >= least)
    mine, theirs = np.asarray(pairs.sum(1)).ravel(), np.asarray(pairs.sum(0)).ravel()
    told = np.log(pairs.data * pairs.data.sum() / (mine[pairs.row] * theirs[pairs.col])) if pairs.nnz else pairs.data
    keep = told > 0
    told = sparse.csr_matrix((told[keep], (pairs.row[keep], pairs.col[keep])), (n, 2 * n))
    k, dims = min(k, len(often) - 1), min(dims, n - 1)
    if k < 1 or dims < 1 or not told.nnz:
        return Kin(np.zeros(0, np.int32), np.zeros(n + 1, np.int64))
    u, s, _ = svds(told, k=dims, v0=np.ones(n))  # a fixed start: the same words on every run
    _, where = nearest(torch.from_numpy((u * s)[often].astype(np.float32)), k)
    counts = np.zeros(n, np.int64)
    counts[often] = k
    return Kin(often[where.numpy()].reshape(-1).astype(np.int32), _offsets(counts))


# ---- edits of words


def swap(words: Words, times: np.ndarray, rng: np.random.Generator) -> Words:
    """Exchange two words of a row, `times` (N,) over; a row of one word stays."""
    values, start, length = words.values.copy(), words.offsets[:-1], words.lengths
    row = np.flatnonzero(length > 1)
    for t in range(int(times[row].max(initial=0))):
        row = row[times[row] > t]  # a long row, which is swapped often, does not have the others looked at again
        one = _below(length[row], rng)
        other = (one + 1 + _below(length[row] - 1, rng)) % length[row]
        a, b = start[row] + one, start[row] + other
        values[a], values[b] = values[b], values[a]
    return replace(words, values=values)


def delete(words: Words, share: float, rng: np.random.Generator) -> Words:
    """Leave out each word with probability `share`; a row that would lose all keeps one of them, evenly drawn."""
    keep = rng.random(len(words.values)) >= share
    lost = np.flatnonzero((np.bincount(words.rows[keep], minlength=len(words)) == 0) & (words.lengths > 0))
    keep[words.offsets[lost] + _below(words.lengths[lost], rng)] = True
    return replace(
        words,
        values=words.values[keep],
        offsets=_offsets(np.bincount(words.rows[keep], minlength=len(words))),
    )


def insert(words: Words, times: np.ndarray, kin: Kin, rng: np.random.Generator) -> Words:
    """Put in a stand-in of a random word of the row at a random place, `times` (N,) over.

    Words without stand-ins are not drawn; a row that has only such stays as it is.
    """
    able = np.flatnonzero(kin.counts[words.values] > 0)
    count = np.bincount(words.rows[able], minlength=len(words))
    row = np.repeat(np.arange(len(words)), np.where(count > 0, times, 0))
    source = able[_offsets(count)[row] + _below(count[row], rng)]
    place = words.offsets[row] + _below(words.lengths[row] + 1, rng)
    return replace(
        words,
        values=np.insert(
            words.values, place, kin.draw(words.values[source], rng)
        ),  # ties keep their order: rows ascend
        offsets=_offsets(words.lengths + np.bincount(row, minlength=len(words))),
    )


def exchange(
    words: Words, times: np.ndarray, kin: Kin, rng: np.random.Generator, skip: np.ndarray | None = None
) -> Words:
    """Exchange `times` (N,) different words of a row, everywhere in the row, each for one of its stand-ins.

    skip: bool (V,), the words never exchanged. A row with fewer that can be exchanges those it has.
    """
    n = len(words.names)
    pair, back = np.unique(words.rows * n + words.values, return_inverse=True)
    row, word = np.divmod(pair, max(1, n))
    able = kin.counts[word] > 0 if skip is None else (kin.counts[word] > 0) & ~skip[word]
    order = np.lexsort((np.where(able, rng.random(len(pair)), np.inf), row))  # in each row the drawn ones first
    rank = np.empty(len(pair), np.int64)
    rank[order] = np.arange(len(pair)) - np.searchsorted(row, row[order])
    chosen = np.flatnonzero(able & (rank < times[row]))
    new = word.astype(np.int32)
    new[chosen] = kin.draw(word[chosen], rng)
    return replace(words, values=new[back])


# ---- edits of characters


def typos(texts: Sequence[str], share: float, rng: np.random.Generator) -> list[str]:
    """Mistype each character that is no space with probability `share`: another for it, none, one more, or two swapped.

    What is typed instead is drawn evenly from the distinct characters of the texts. Spaces stay, and so does the last
    character a row has left. Memory: about 40 bytes a character.
    """
    whole = "".join(texts)
    codes = np.frombuffer(whole.encode("utf-32-le", "surrogatepass"), np.uint32).copy()
    row = np.repeat(np.arange(len(texts)), np.fromiter(map(len, texts), np.int64, len(texts)))
    seen = np.unique(codes)
    spaces = np.array([c for c in seen.tolist() if chr(c).isspace()], np.uint32)
    typed, solid = np.setdiff1d(seen, spaces), ~np.isin(codes, spaces)
    hit = (rng.random(len(codes)) < share) & solid
    kind = np.where(hit, rng.integers(0, 4, len(codes)), -1)
    at = np.flatnonzero(kind[:-1] == 3)
    at = at[(row[at] == row[at + 1]) & solid[at + 1] & ~hit[at + 1]]
    codes[at], codes[at + 1] = codes[at + 1], codes[at]
    other = np.flatnonzero(kind == 0)
    codes[other] = typed[rng.integers(0, max(1, len(typed)), len(other))]
    copies = np.where(kind == 1, 0, np.where(kind == 2, 2, 1))
    bare = np.bincount(row, copies * solid, len(texts)) == 0
    copies[bare[row]] = 1
    more = np.cumsum(copies)[copies == 2] - 1
    out = np.repeat(codes, copies)
    out[more] = typed[rng.integers(0, max(1, len(typed)), len(more))]
    ends = np.cumsum(np.bincount(row, copies, len(texts)).astype(np.int64))
    made = out.tobytes().decode("utf-32-le", "surrogatepass")
    return [made[a:b] for a, b in zip([0, *ends[:-1].tolist()], ends.tolist())]


# ---- rows with edited copies of them


def added(data: Data, made: Mapping[str, Sequence[str]], origin: np.ndarray) -> Data:
    """The rows of `data` and, after them, new ones: copies of the rows at `origin` (M,) but for the text columns in `made`.

    The column `augmented` is 1 in the new rows, else 0; `parents` names the row each came from, an old row itself. Token
    columns are left out, for they would still speak of the old text: encode afterwards.
    """
    for name, texts in made.items():
        data.need_column(name)
        if len(texts) != len(origin):
            raise Bad(f"column {name!r} has {len(texts)} texts for {len(origin)} new rows")
    encoded = [c for c in data.columns if c.endswith("input_ids")]
    stale = {"parents", "segment_ids", "position_ids", *encoded, *(c.replace("input_ids", "labels") for c in encoded)}
    every = np.concatenate([np.arange(len(data)), np.asarray(origin, np.int64)])
    whole: pa.Table = data.take(every).arrow()
    columns: dict[str, Any] = {c: whole[c] for c in whole.column_names if c not in stale}
    for name, texts in made.items():
        old = columns[name].slice(0, len(data))
        columns[name] = pa.chunked_array([*old.chunks, pa.array(list(texts), old.type)], old.type)
    before = data["augmented"] if "augmented" in data.columns else np.zeros(len(data), np.int8)
    columns["augmented"] = np.concatenate([np.asarray(before, np.int8), np.ones(len(origin), np.int8)])
    return data.new(columns, parents=data.ids[every])
