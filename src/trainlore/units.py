"""Amounts as people write them: 3000, 10k, "2M tokens". Loads nothing."""

from __future__ import annotations

import re
from typing import Any

from trainlore.errors import Bad

AMOUNT = re.compile(r"-?[0-9][0-9_,.]*(e[-+]?[0-9]+)?[kKMBGT]?( [a-z]+)?")  # 3e-3 too, which YAML reads as text


def amount(value: Any) -> float:
    """A number that may carry a unit: 3000, "2M", "1.5e9", "10k", "2B tokens"."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    text = str(value).split()[0].replace(",", "").replace("_", "") if str(value).split() else ""
    scale = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}.get(text[-1:], 1.0)
    try:
        return float(text[:-1] if scale != 1.0 else text) * scale
    except ValueError:
        raise Bad(f"{value!r} is not an amount: write 3000, 10k, 2M or 1.5B") from None
