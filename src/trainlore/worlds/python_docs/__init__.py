"""The embedded world: docstrings and source of the Python packages installed beside it, a package a domain.

Tens of MB of real English and code that need no download; of a very large package a fixed part. The files are parsed,
never imported; the table is kept as an Arrow file under the cache folder and mapped from there. What it holds depends
on the versions installed: report `fingerprint(table)` with every number measured on it.

    packages     which packages, where they lie, which of their files are read
    parsing      one file's source to rows
    extracting   all files to one table, spread over processes
    gathering    the table from the cache, or made and kept
    tables       what is made of it: pools, targets, prompts, preferences
"""

from __future__ import annotations

from trainlore.worlds.python_docs.gathering import fingerprint, gather, megabytes
from trainlore.worlds.python_docs.tables import Parts, parts, preferences, summaries

__all__ = ["Parts", "fingerprint", "gather", "megabytes", "parts", "preferences", "summaries"]
