"""MinHash: shingles of texts, their signatures, and the pairs of texts that may be alike."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

U = np.uint64
BLOCK = 1 << 15  # shingles hashed at a time: small enough to stay in the processor's cache
TEXT = 1 << 19  # characters shingled at a time
_BASE, _STEP = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd, so they have inverses modulo 2 ** 64
_WORD = np.zeros(256, bool)  # bytes that belong to words: letters, digits, and all of what is not ASCII
_WORD[[*range(48, 58), *range(65, 91), *range(97, 123), *range(128, 256)]] = True


def shingles(texts: Sequence[str], words: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """The hashed runs of `words` words of each text, lower case: (hashes uint64 (S,), offsets int64 (N + 1,)).

    A text with fewer words is one shingle, a text without words none. Hashes are sums modulo 2 ** 64 of powers of an
    odd number, so that the hash of any run is a difference of two running sums: no loop over words.
    """
    if words < 1:
        raise ValueError(f"words must be at least 1, got {words}")
    found, counts, begin = [np.empty(0, U)], [np.empty(0, np.int64)], 0
    while begin < len(texts):  # a bounded number of bytes at a time: the sums take eight bytes a byte
        end, size = begin, 0
        while end < len(texts) and (end == begin or size + len(texts[end]) <= TEXT):
            size += len(texts[end])
            end += 1
        hashes, count = _shingles(texts[begin:end], words)
        found.append(hashes)
        counts.append(count)
        begin = end
    return np.concatenate(found), np.concatenate([[0], np.cumsum(np.concatenate(counts))])


def _shingles(texts: Sequence[str], words: int) -> tuple[np.ndarray, np.ndarray]:
    joined = "\0".join(t.replace("\0", " ") for t in texts).lower()
    text = np.frombuffer((" " + joined + "\0").encode("utf-8", "replace"), np.uint8)
    inside = _WORD[text]
    edge = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    begin, end = edge[::2], edge[1::2]  # the text starts with a blank and ends with a zero: edges come in pairs
    word = _mix(_runs(_BYTE[text], begin, end, _BASE))
    count = np.diff(np.searchsorted(begin, np.flatnonzero(text == 0)), prepend=0)
    kept = np.where(count > 0, np.maximum(1, count - words + 1), 0)
    stop = np.cumsum(count)
    first = np.arange(kept.sum()) + np.repeat(stop - count - (np.cumsum(kept) - kept), kept)
    return _mix(_runs(word, first, np.minimum(first + words, np.repeat(stop, kept)), _STEP)), kept


def _runs(values: np.ndarray, begin: np.ndarray, end: np.ndarray, base: int) -> np.ndarray:
    """Hash of values[begin:end] for every run; the same values give the same hash wherever they lie."""
    total = np.zeros(len(values) + 1, U)
    np.cumsum(values * _powers(len(values), base), out=total[1:])
    return (total[end] - total[begin]) * _powers(len(values), pow(base, -1, 1 << 64))[begin]


def _powers(n: int, base: int) -> np.ndarray:
    """base ** 0, base ** 1, ..., modulo 2 ** 64: at least one more than n, of which a view is given."""
    bits = max(1, n).bit_length()
    return (_table if bits <= 22 else _table.__wrapped__)(bits, base)[:n]  # a giant text's powers are not kept


@functools.lru_cache(maxsize=8)
def _table(bits: int, base: int) -> np.ndarray:
    power = np.full(1 << bits, base, U)
    power[0] = 1
    np.cumprod(power, out=power)
    power.flags.writeable = False
    return power


def _mix(x: np.ndarray) -> np.ndarray:
    """Scramble 64 bits so that every bit of the result depends on every bit of x (the splitmix64 finalizer)."""
    x = (x ^ (x >> U(30))) * U(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U(27))) * U(0x94D049BB133111EB)
    return x ^ (x >> U(31))


_BYTE = _mix(np.arange(1, 257, dtype=U))


def signatures(hashes: np.ndarray, offsets: np.ndarray, mult: np.ndarray, add: np.ndarray) -> np.ndarray:
    """The least of mult_k * h + add_k modulo 2 ** 32 over each text's hashes: uint32 (N, K); all ones for a text without any.

    Of the hashes, `mult` uint64 (K,) and `add` uint64 (K,) the high 32 bits count, of `mult` made odd: processors multiply
    eight such numbers at once, of 64 bits one. Two texts agree in one place with about the probability of their Jaccard similarity,
    the share of their shingles that both have.
    """
    out = np.full((len(offsets) - 1, len(mult)), np.iinfo(np.uint32).max, np.uint32)
    mult, add = (mult >> U(32)).astype(np.uint32) | np.uint32(1), (add >> U(32)).astype(np.uint32)
    full = np.flatnonzero(np.diff(offsets))
    begin = 0
    while begin < len(full):
        at = int(offsets[full[begin]])
        stop = max(begin + 1, int(np.searchsorted(offsets[full + 1], at + BLOCK, side="right")))
        part = (hashes[at : offsets[full[stop - 1] + 1]] >> U(32)).astype(np.uint32)
        starts, work = offsets[full[begin:stop]] - at, np.empty_like(part)
        least = np.empty((len(mult), stop - begin), np.uint32)
        for k in range(len(mult)):
            np.multiply(part, mult[k], out=work)
            np.add(work, add[k], out=work)
            np.minimum.reduceat(work, starts, out=least[k])
        out[full[begin:stop]] = least.T
        begin = stop
    return out


def band_keys(signature: np.ndarray, bands: int) -> np.ndarray:
    """One uint64 key for each of `bands` equal groups of columns of a signature (N, K): (N, bands)."""
    n, k = signature.shape
    if k % bands:
        raise ValueError(f"{k} hashes do not divide into {bands} bands")
    part = _mix(signature.astype(U) + U(1)).reshape(n, bands, k // bands)
    return _mix((part * _powers(k // bands, _BASE)).sum(2, dtype=U))


def candidates(keys: np.ndarray) -> np.ndarray:
    """Pairs (i < j) of rows that share a key in some band, int64 (M, 2), sorted and each once.

    In a group of rows with one key, each row is paired with the first of the group and with the one before it,
    so a group of g rows gives fewer than 2 g pairs, not g ** 2 / 2.
    """
    n, bands = keys.shape
    found = []
    for b in range(bands):
        order = np.argsort(keys[:, b], kind="stable")
        value = keys[order, b]
        same = np.flatnonzero(value[1:] == value[:-1]) + 1
        new = np.r_[True, value[1:] != value[:-1]][:n]
        head = np.maximum.accumulate(np.where(new, np.arange(n), 0))
        found.append(_distinct(np.r_[order[head[same]] * n + order[same], order[same - 1] * n + order[same]]))
    pair = _distinct(np.concatenate(found)) if found else np.empty(0, np.int64)
    return np.stack([pair // max(1, n), pair % max(1, n)], 1).astype(np.int64)


def jaccard(hashes: np.ndarray, offsets: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """The true Jaccard similarity of each pair (M, 2) of texts, float64 (M,); 0 when either has no shingles."""
    n = len(offsets) - 1
    kinds, number = np.unique(hashes, return_inverse=True)  # small numbers, so that (text, hash) is one whole number
    held = _distinct(np.repeat(np.arange(n), np.diff(offsets)) * len(kinds) + number.reshape(-1))
    at = np.searchsorted(held, np.arange(n + 1) * len(kinds))
    size = np.diff(at)
    left, right = np.where((size[pairs[:, 0]] <= size[pairs[:, 1]])[:, None], pairs, pairs[:, ::-1]).T
    asked = np.repeat(right, size[left]) * len(kinds) + held[_spans(at[left], size[left])] % max(1, len(kinds))
    there = np.searchsorted(held, asked)
    hit = there < len(held)
    hit[hit] = held[there[hit]] == asked[hit]
    both = np.bincount(np.repeat(np.arange(len(pairs)), size[left])[hit], minlength=len(pairs))
    union = size[pairs].sum(1) - both
    return np.where(both > 0, both / np.maximum(union, 1), 0.0)


def _distinct(x: np.ndarray) -> np.ndarray:
    """The sorted values of x (N,), each once; `np.unique` hashes instead, which is several times slower here."""
    x = np.sort(x)
    return x[np.r_[True, x[1:] != x[:-1]][: len(x)]]


def _spans(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """start[0] .. start[0] + size[0] - 1, start[1] .. and so on, as one array."""
    return np.repeat(start - (np.cumsum(size) - size), size) + np.arange(size.sum())
