"""Run by torchrun: every part named trains in its tiny world with all processes; rank 0 writes what came of it."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from trainlore.checks import fitted, make, nouns_of
from trainlore.errors import Bad
from trainlore.registry import entry
from trainlore.runs import Run
from trainlore.team import started


def trained(name, steps, batch_size):
    """The model and the run of a training with the part, or of the model that a shape made."""
    nouns = nouns_of(name)
    method, how = make(name, nouns), {"steps": steps, "batch_size": batch_size, "lr": 1e-3}
    if entry(name)["kind"] != "Shape":
        return fitted(name, method, nouns=nouns, **how)
    nouns["model"] = Run(3).step(method, nouns["model"])
    return fitted(name, nouns=nouns, **how)


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, names = Path(sys.argv[1]), sys.argv[4:]
    team = started()
    found = {}
    for name in names:
        try:
            model, run = trained(name, int(sys.argv[2]), int(sys.argv[3]))
        except Bad as error:
            found[name] = {"refused": str(error)}
        else:
            weights = {k: v for k, v in model.net.state_dict().items() if v.is_floating_point()}
            found[name] = {"weights": weights, "work": run.meter.work}
    if team.leads:
        torch.save(found, out)
    team.wait()
