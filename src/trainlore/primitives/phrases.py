"""Which of many words and phrases occur in texts: all places of a chunk walk through one prefix tree of whole words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

__all__ = ["Matcher", "words"]

CHUNK = 1 << 20  # words looked up at a time
SPACED = str.maketrans({c: f" {c} " for c in ",.;:?!`"} | dict.fromkeys("\t\n\r", " "))


def words(text: str) -> list[str]:
    """What stands between single spaces once marks are set apart; an empty word where two spaces meet."""
    return f" {text} ".translate(SPACED).split(" ")


class Matcher:
    """Finds the `entries`, words or several with single spaces between them, as whole words; upper case counts."""

    def __init__(self, entries: Iterable[str]) -> None:
        spelled = [e.split(" ") for e in entries]
        self.entries = len(spelled)
        self.word = {w: i for i, w in enumerate(dict.fromkeys(w for e in spelled for w in e))}
        self.tree: list[tuple[np.ndarray, np.ndarray]] = []  # by depth: keys (prefix, word), and the entry that ends
        prefix, alive = np.zeros(len(spelled), np.int64), np.arange(len(spelled))
        while len(alive):
            depth = len(self.tree)
            step = np.array([self.word[spelled[e][depth]] for e in alive], np.int64)
            keys, prefix = np.unique(prefix * len(self.word) + step, return_inverse=True)
            last = np.array([len(spelled[e]) == depth + 1 for e in alive], bool)
            ends = np.full(len(keys), -1)
            ends[prefix[last]] = alive[last]
            self.tree.append((keys, ends))
            alive, prefix = alive[~last], prefix[~last]

    def __call__(self, texts: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
        """Each text with each entry that occurs in it, once: rows and entries, int64 (M,) each, rows ascending."""
        found = [
            self._chunk(np.array(word), np.repeat(np.arange(at, at + len(n)), n)) for at, word, n in self._read(texts)
        ]
        rows, entries = (np.concatenate([f[i] for f in found] or [np.zeros(0, np.int64)]) for i in (0, 1))
        return rows, entries

    def _read(self, texts: Iterable[str]) -> Iterator[tuple[int, list[int], list[int]]]:
        """The first row, the words (-1: in no entry) and the lengths of some texts at a time."""
        at, word, lengths = 0, [], []
        for text in texts:
            mine = [self.word.get(w, -1) for w in words(text)]
            word += mine
            lengths.append(len(mine))
            if len(word) >= CHUNK:
                yield at, word, lengths
                at, word, lengths = at + len(lengths), [], []
        if word:
            yield at, word, lengths

    def _chunk(self, word: np.ndarray, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        place, prefix, found = np.arange(len(word)), np.zeros(len(word), np.int64), [np.zeros(0, np.int64)]
        for depth, (keys, ends) in enumerate(self.tree):
            here = place + depth
            inside = here < len(word)
            place, prefix, here = place[inside], prefix[inside], here[inside]
            going = (word[here] >= 0) & (row[here] == row[place])
            place, key = place[going], prefix[going] * len(self.word) + word[here[going]]
            prefix = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            going = keys[prefix] == key
            place, prefix = place[going], prefix[going]
            done = ends[prefix] >= 0
            found.append(row[place[done]] * self.entries + ends[prefix[done]])
        return np.divmod(np.unique(np.concatenate(found)), max(1, self.entries))
