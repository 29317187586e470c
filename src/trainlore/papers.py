"""The 575 papers this product was measured against: which methods came of each, or why there is none."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@functools.cache
def _stored() -> tuple[dict[str, str], ...]:
    return tuple(json.loads((Path(__file__).parent / "_papers.json").read_text(encoding="utf-8")))


def papers(index: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One {id, title, name, family, kind, tier, methods, reason} a paper, sorted by id.

    `index` maps a method's name to its entry, whose card may cite papers under `lit` (one id, or several). A paper with a method has no
    reason; a paper without one has a sentence.
    """
    cited: dict[str, list[str]] = {}
    for name, entry in index.items():
        ids = entry.get("card", {}).get("lit") or ()
        for paper in (ids,) if isinstance(ids, str) else ids:
            cited.setdefault(paper, []).append(name)
    known = {row["id"] for row in _stored()}
    if strangers := sorted(set(cited) - known):
        raise ValueError(f"methods cite papers the index does not have: {', '.join(strangers)}; correct their `lit`")
    return [
        {**row, "methods": sorted(cited.get(row["id"], ())), "reason": "" if row["id"] in cited else row["reason"]}
        for row in _stored()
    ]
