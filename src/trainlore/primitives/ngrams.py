"""Hashed n-grams of text, a chunk of rows at a time: whole chunks go through NumPy, no Python loop per word.

Words are what NLTK's WordPunct rule yields on lower-cased text: runs of word characters, and runs of what is neither a word
character nor space. `hash="fast"` mixes 8 bytes at a time; `hash="sha256"` gives the buckets of the DSIR authors' package
(sha256 of the words joined by a space, modulo `buckets`), each distinct n-gram digested once while it stays in a fixed-size cache.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from trainlore.errors import Bad

__all__ = ["Grams", "Hasher", "bags"]

_CHUNK = 1 << 19  # bytes of text hashed at once: a few arrays of 8 bytes a word stay in the L2 and L3 caches
_SLOTS = 22  # log2 of the cache's slots in "sha256": 4 M n-grams, 50 MB
_EMPTY = np.uint64(0)
_ODD = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SPACE, _WORD, _MARK = 0, 1, 2
_LETTERS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_BOXED = (("\U0001f130", "\U0001f149"), ("\U0001f150", "\U0001f169"), ("\U0001f170", "\U0001f189"))


@dataclass(frozen=True)
class Grams:
    """The n-grams of R consecutive rows."""

    row: np.ndarray
    """(M,) int64: which of the R rows an n-gram is in, ascending within each order."""
    bucket: np.ndarray
    """(M,) int64 in [0, buckets)."""
    words: np.ndarray
    """(R,) int64: words of each row."""


class Hasher:
    """Hash the 1- to `ngrams`-grams of rows of text into `buckets` buckets; memory does not grow with the rows."""

    def __init__(self, ngrams: int = 2, buckets: int = 10_000, hash: str = "fast"):
        if ngrams < 1:
            raise Bad(f"ngrams={ngrams}: need at least 1")
        if not 1 <= buckets < 2**31:
            raise Bad(f"buckets={buckets}: need 1 to 2**31 - 1")
        if hash not in ("fast", "sha256"):
            raise Bad(f"hash={hash!r}: choose 'fast', or 'sha256' for the DSIR authors' buckets")
        self.ngrams, self.buckets, self.hash = ngrams, buckets, hash
        if hash == "sha256":
            self._key = np.full(1 << _SLOTS, _EMPTY, np.uint64)
            self._bucket = np.zeros(1 << _SLOTS, np.int32)

    def grams(self, texts: Iterable[str]) -> Iterator[Grams]:
        """Yield the n-grams of `texts` in chunks of whole rows, in order."""
        rows, size = [], 0
        for text in texts:
            rows.append(text.lower().encode())
            size += len(rows[-1]) + 1
            if size >= _CHUNK:
                yield self._chunk(rows)
                rows, size = [], 0
        if rows:
            yield self._chunk(rows)

    def counts(self, texts: Iterable[str]) -> np.ndarray:
        """(buckets,) int64: how often each bucket is hit in all of `texts`."""
        total = np.zeros(self.buckets, np.int64)
        for g in self.grams(texts):
            total += np.bincount(g.bucket, minlength=self.buckets)
        return total

    def scores(self, texts: Iterable[str], gain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Sum `gain` (buckets,) over the n-grams of each text: (N,) float64 sums and (N,) int64 words."""
        sums: list[np.ndarray] = [np.zeros(0)]
        words: list[np.ndarray] = [np.zeros(0, np.int64)]
        for g in self.grams(texts):
            sums.append(np.bincount(g.row, gain[g.bucket], len(g.words)))
            words.append(g.words)
        return np.concatenate(sums), np.concatenate(words)

    def _chunk(self, rows: list[bytes]) -> Grams:
        text = b"\n".join(rows)
        ends = np.cumsum([len(r) + 1 for r in rows])
        start, end, kind = _split(text)
        first = np.searchsorted(start, np.concatenate([[0], ends[:-1]]))
        words = np.diff(np.append(first, len(start)))
        row = np.repeat(np.arange(len(rows)), words)
        one = _hash_words(text, start, end)
        if self.hash == "sha256":
            text, start = _space(text, kind, size := end - start)
            end = start + size
        gram, all_rows, all_buckets = one, [], []
        for n in range(1, self.ngrams + 1):
            at = np.arange(len(row))
            if n > 1:  # extend every (n-1)-gram by the next word, if that word is in the same row
                at = np.flatnonzero(row[: len(row) - n + 1] == row[n - 1 :]) if len(row) >= n else at[:0]
                longer = np.zeros_like(one)
                longer[at] = _mix(gram[at] * _ODD[0] + one[at + n - 1])
                gram = longer
            all_rows.append(row[at])
            all_buckets.append(self._look_up(gram[at], at, n, text, start, end))
        return Grams(np.concatenate(all_rows), np.concatenate(all_buckets), words)

    def _look_up(
        self, gram: np.ndarray, at: np.ndarray, n: int, text: bytes, start: np.ndarray, end: np.ndarray
    ) -> np.ndarray:
        """(M,) int64: buckets of the n-grams hashed to `gram` (M,) uint64 that begin at the words `at` (M,)."""
        if self.hash == "fast":
            return (((gram >> np.uint64(32)) * np.uint64(self.buckets)) >> np.uint64(32)).astype(np.int64)
        # A direct-mapped cache: the slot is the top bits of the 64-bit hash, the whole hash is the proof of a hit.
        slot = (gram >> np.uint64(64 - _SLOTS)).astype(np.int64)
        found = self._bucket[slot].astype(np.int64)
        miss = np.flatnonzero(self._key[slot] != gram)
        if len(miss):
            new, which, back = np.unique(gram[miss], return_index=True, return_inverse=True)
            i = at[miss[which]]
            fresh = self._digest([text[s:e] for s, e in zip(start[i].tolist(), end[i + n - 1].tolist(), strict=True)])
            found[miss] = fresh[back]
            slots = (new >> np.uint64(64 - _SLOTS)).astype(np.int64)
            self._key[slots], self._bucket[slots] = new, fresh
        return found

    def _digest(self, grams: list[bytes]) -> np.ndarray:
        """(M,) int64: sha256 of each, read as one big-endian number, modulo the buckets."""
        sha256 = hashlib.sha256
        words = np.frombuffer(b"".join([sha256(g).digest() for g in grams]), ">u4").reshape(-1, 8).astype(np.uint64)
        rest = np.zeros(len(grams), np.uint64)
        for word in words.T:  # the remainder of a long number, 32 bits at a time
            rest = ((rest << np.uint64(32)) | word) % np.uint64(self.buckets)
        return rest.astype(np.int64)


def _split(text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the words of UTF-8 `text` start (W,) and end (W,), in bytes, and the kind of every byte."""
    code = np.frombuffer(text, np.uint8)
    kind = _ascii_kinds()[code]
    if not text.isascii():
        lead = np.flatnonzero(code >= 0xC0)
        size = np.where(code[lead] >= 0xF0, 4, np.where(code[lead] >= 0xE0, 3, 2))
        point = code[lead].astype(np.int64) & (0x7F >> size)
        for k in range(1, 4):
            more = lead[size > k]
            point[size > k] = (point[size > k] << 6) | (code[more + k] & 0x3F)
        points, back = np.unique(point, return_inverse=True)
        of = np.array([_kind(chr(p)) for p in points.tolist()], np.uint8)[back]
        for k in range(4):
            kind[lead[size > k] + k] = of[size > k]
    edge = np.flatnonzero(kind[1:] != kind[:-1]) + 1
    start = np.concatenate([[0], edge]) if len(kind) else edge
    end = np.append(edge, len(kind)) if len(kind) else edge
    words = kind[start] != _SPACE
    return start[words], end[words], kind


def _space(text: bytes, kind: np.ndarray, size: np.ndarray) -> tuple[bytes, np.ndarray]:
    """The words alone with one space after each, so that an n-gram is one slice; and where they start (W,)."""
    spaced = np.full(int(size.sum()) + len(size), 32, np.uint8)
    filled = np.ones(len(spaced), bool)
    end = np.cumsum(size + 1) - 1
    filled[end] = False
    spaced[filled] = np.frombuffer(text, np.uint8)[kind != _SPACE]
    return spaced.tobytes(), end - size


@cache
def _kind(char: str) -> int:
    if unicodedata.category(char) in _LETTERS or "\u24b6" <= char <= "\u24e9" or "\u200c" <= char <= "\u200d":
        return _WORD
    if any(first <= char <= last for first, last in _BOXED):
        return _WORD
    return _SPACE if char.isspace() and not "\x1c" <= char <= "\x1f" else _MARK


@cache
def _ascii_kinds() -> np.ndarray:
    return np.array([_kind(chr(i)) if i < 128 else _MARK for i in range(256)], np.uint8)


def _mix(h: np.ndarray) -> np.ndarray:
    """Spread (N,) uint64 over all 64 bits (the finalizer of splitmix64)."""
    h = (h ^ (h >> np.uint64(30))) * _ODD[1]
    h = (h ^ (h >> np.uint64(27))) * _ODD[2]
    return h ^ (h >> np.uint64(31))


def _hash_words(text: bytes, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(W,) uint64: a 64-bit hash of each word's bytes, read 8 at a time; words over 64 bytes go one by one."""
    block = np.frombuffer(text + bytes(16 - len(text) % 8), "<u8")
    size = end - start
    h = _mix(size.astype(np.uint64) * _ODD[0])
    left = np.flatnonzero(size <= 64)
    for k in range(8):
        if k:
            left = left[size[left] > 8 * k]
        if not len(left):
            break
        at = start[left] + 8 * k
        i, shift = at >> 3, ((at & 7) << 3).astype(np.uint64)
        piece = (block[i] >> shift) | ((block[i + 1] << np.uint64(1)) << (np.uint64(63) - shift))
        spare = np.maximum(8 * (k + 1) - size[left], 0) * 8  # bits of the piece beyond the word's end
        piece &= np.uint64(0xFFFFFFFFFFFFFFFF) >> spare.astype(np.uint64)
        h[left] = _mix((h[left] ^ piece) * _ODD[0])
    for j in np.flatnonzero(size > 64).tolist():
        digest = hashlib.blake2b(text[start[j] : end[j]], digest_size=8).digest()
        h[j] = np.uint64(int.from_bytes(digest, "big"))
    return h


def bags(hasher: Hasher, texts: Iterable[str]) -> Iterator[Any]:
    """Hashed n-grams of texts as sparse counts (R, buckets) with rows of length 1, a chunk of whole rows at a time."""
    from scipy.sparse import csr_matrix
    from sklearn.preprocessing import normalize

    for g in hasher.grams(texts):
        yield normalize(csr_matrix((np.ones(len(g.row)), (g.row, g.bucket)), shape=(len(g.words), hasher.buckets)))
