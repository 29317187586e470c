"""How this process holds on to memory."""

from __future__ import annotations

import ctypes
import sys

TRIM, MMAP = -1, -3  # of glibc's malloc.h
ROOM = 1 << 30


def keep_freed() -> bool:
    """Let the C library keep freed blocks up to 1 GiB for the next step; whether it could be told so.

    By default glibc gives every large block back to the system at once: the logits of a step, taken and given back, cost
    about a tenth of a small model's step in page faults.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, which has its own ways
        return False
    return bool(mallopt(MMAP, ROOM)) and bool(mallopt(TRIM, ROOM))
