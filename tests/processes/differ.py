"""Run by torchrun: every process chooses rows by a seed of its own; rank 0 writes what is said of that."""

from __future__ import annotations

import sys
from pathlib import Path

from trainlore.errors import Bad
from trainlore.execute import execute
from trainlore.recipe import read
from trainlore.team import started

if __name__ == "__main__":
    team, out = started(), Path(sys.argv[1])
    made = {
        "seed": team.rank,
        "given": {"pool": "world:digits/train"},
        "steps": [{"random_rows": {"data": "$pool", "keep": 0.5, "as": "half"}}],
    }
    try:
        execute(read(made), out / "run")
    except Bad as error:
        if team.leads:
            (out / "said").write_text(str(error))
    team.wait()
