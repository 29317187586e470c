"""Run by torchrun: every part named trains in its tiny world with all processes; rank 0 writes what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from trainlore.checks import fitted, make, nouns_of
from trainlore.errors import Bad
from trainlore.team import started

if __name__ == "__main__":
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[4:]
    team = started()
    found = {}
    for name in names:
        nouns = nouns_of(name)
        try:
            model, run = fitted(
                name, make(name, nouns), nouns=nouns, steps=int(sys.argv[2]), batch_size=int(sys.argv[3]), lr=1e-3
            )
        except Bad as error:
            found[name] = {"refused": str(error)}
        else:
            weights = {k: v for k, v in model.net.state_dict().items() if v.is_floating_point()}
            found[name] = {"weights": weights, "work": run.meter.work}
    if team.leads:
        torch.save(found, out)
    team.wait()
