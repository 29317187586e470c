"""What is made of the table: a pool to choose from and a domain to choose for, prompts with answers, preferences."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from trainlore.errors import Bad
from trainlore.worlds.python_docs.gathering import about, gather

NEARBY = (1, -1, 2, -2, 3, -3, 5, -5, 8, -8)  # places apart at which another line is looked for


def parts(table: pa.Table, target: str = "scipy", held_out: float = 0.1) -> dict[str, pa.Table]:
    """A pool to choose from and a domain to choose for.

    `pool`: the other domains. `held_out`: a share of their rows, never to be trained on. `target_dev` and
    `target_test`: the halves of the target, one to select with and one to judge by. The side of a row is the hash of
    its text, so copies are never on two sides, and a row is on the same side in every install; pool rows whose text
    also stands in the target are left out.
    """
    if not 0 <= held_out < 1:
        raise Bad(f"held_out={held_out}: a share of the rows, from 0 to below 1")
    domains = pc.unique(table["domain"]).to_pylist()
    if target not in domains:
        raise Bad(f"target={target!r} is no domain of this table; there are {', '.join(domains)}")
    names = _hashes(table["text"], "side")
    share = names / 2.0**64
    mine = pc.equal(table["domain"], target).to_numpy()
    pool = ~mine & ~np.isin(names, names[mine])
    rows = {
        "pool": pool & (share >= held_out),
        "target_dev": mine & (share < 0.5),
        "target_test": mine & (share >= 0.5),
        "held_out": pool & (share < held_out),
    }
    return {name: about(table.filter(pa.array(mask)).combine_chunks()) for name, mask in rows.items()}


def summaries(table: pa.Table, longest: int = 1200) -> pa.Table:
    """Functions, methods and classes to be summed up: `prompt` (signature and code), `completion` (the first line).

    With `domain` and `name`. Rows without code, and first lines that are no sentence (a signature, a field list, three
    words), are left out. A prompt has at most `longest` characters and ends with a blank line.
    """
    line = pc.list_element(pc.split_pattern(table["text"], "\n", max_splits=1), 0)
    keep = pc.and_(pc.not_equal(table["kind"], "module"), pc.greater(pc.utf8_length(table["code"]), 20))
    keep = pc.and_(keep, pc.match_substring_regex(line, r"^[A-Z`\"*\[][^\n]{15,158}[.!?`\w)]$"))
    keep = pc.and_(keep, pc.match_substring_regex(line, r"^\S+\s+\S+\s+\S+\s+\S+"))
    keep = pc.and_(
        keep, pc.invert(pc.match_substring_regex(line, r"^(Args|Parameters|Returns|See|Copied from|TODO)\b|->"))
    )
    table, line = table.filter(keep), line.filter(keep)
    blank, end = (pa.scalar(c, pa.large_string()) for c in ("\n", "\n\n"))
    prompt = pc.binary_join_element_wise(table["signature"], table["code"], blank)
    prompt = pc.binary_join_element_wise(pc.utf8_slice_codeunits(prompt, 0, longest - 2), end, pa.scalar("", end.type))
    return pa.table({"prompt": prompt, "completion": line, "domain": table["domain"], "name": table["name"]})


def preferences(table: pa.Table, longest: int = 1200) -> pa.Table:
    """Right against wrong: `prompt`, `chosen` (its first line), `rejected` (another row's of the same domain and about
    the same length, named by hash, never the same words), `domain`, `name`.
    """
    rows = summaries(table, longest)
    line, domain = _codes(rows["completion"]), _codes(rows["domain"])
    length = pc.utf8_length(rows["completion"]).to_numpy() // 8
    order = np.lexsort((_hashes(rows["name"], "rejected"), length, domain))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    other = np.full(len(order), -1)
    for step in NEARBY:  # the neighbour in domain, length and hash that says something else
        near = order[np.clip(place + step, 0, max(0, len(order) - 1))]
        fits = (other < 0) & (domain[near] == domain) & (line[near] != line)
        other[fits] = near[fits]
    keep = np.flatnonzero(other >= 0)
    made = rows.take(keep).rename_columns(["prompt", "chosen", "domain", "name"])
    return made.add_column(2, "rejected", rows["completion"].take(other[keep]))


class Parts(dict[str, pa.Table]):
    """The tables of this world by name, each made when it is asked for and then kept.

    `pool`, `target_dev`, `target_test`, `held_out`, `all`; and made of the pool and of the held-out rows:
    `summaries`, `preferences`, `summaries_test`.
    """

    def __init__(self, cache: Path | None = None, packages: Sequence[str] | None = None, target: str = "scipy") -> None:
        super().__init__()
        self._how = cache, packages, target

    def __missing__(self, name: str) -> pa.Table:
        cache, packages, target = self._how
        if name == "all":
            self[name] = gather(cache, packages)
        elif name in ("pool", "target_dev", "target_test", "held_out"):
            self.update(parts(self["all"], target))
        elif name in ("summaries", "summaries_test"):
            self[name] = summaries(self["pool" if name == "summaries" else "held_out"])
        elif name == "preferences":
            self[name] = preferences(self["pool"])
        else:
            raise KeyError(name)
        return self[name]


def _codes(column: Any) -> np.ndarray:
    """A whole number for each string of an Arrow column, the same for equal ones."""
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return np.asarray(array.dictionary_encode().indices)


def _hashes(column: Any, salt: str) -> np.ndarray:
    """A number below 2^64 for each string of an Arrow column, named by the salt: uint64 (N,), the same everywhere."""
    key = salt.encode()
    raw = b"".join(
        hashlib.blake2b(s.encode(), digest_size=8, key=key).digest()
        for chunk in column.chunks
        for s in chunk.to_pylist()
    )
    return np.frombuffer(raw, dtype="<u8")
