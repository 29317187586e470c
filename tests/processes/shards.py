"""Run by torchrun: a small Llama is trained with its weights shared out, stopped, and gone on with."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from trainlore import memory
from trainlore.errors import Bad
from trainlore.nouns import Data
from trainlore.nouns.hugging import preset
from trainlore.registry import load
from trainlore.runs import Run
from trainlore.team import started

HOW = {"steps": 8, "batch_size": 8, "precision": "fp32", "lr": 1e-3}


def text():
    g = np.random.default_rng(0)
    ids = [g.integers(2, 256, size=32 - i % 7).tolist() for i in range(48)]
    return Data.of({"input_ids": ids, "labels": ids})


def parts():
    return load("wsd")(warmup=0.2), load("label_smoothing")(amount=0.1), load("ema")(decay=0.5)


def trained(until=None, folder=None, shard=True, **how):
    model = preset("llama-1m", vocab=256, window=32, num_hidden_layers=2)
    Run(1).fit(model, text(), *parts(), shard=shard, until=until, folder=folder, **{**HOW, **how})
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    team = started()
    found = {}
    whole = trained()
    found["whole"] = {
        "weights": whole.net.state_dict(),
        "tied": whole.net.lm_head.weight is whole.net.model.embed_tokens.weight,
    }
    trained(until=4, folder=out / "sharded")
    found["resumed"] = {"weights": trained(folder=out / "sharded").net.state_dict()}
    trained(until=4, folder=out / "for_others")
    found["of_one"] = {"weights": trained(folder=out / "of_one").net.state_dict()}  # which one process began
    found["watched"] = {"weights": trained(spikes="roll_back").net.state_dict()}
    found["half"] = {"finite": all(v.isfinite().all() for v in trained(precision="fp16").net.state_dict().values())}
    model = preset("llama-1m", vocab=256, window=32, num_hidden_layers=2)
    room = 12 * model.size // 2 + (1 << 18)  # a half of the state each, and not enough for the rows
    plain, memory.available = memory.available, lambda device: room
    try:
        Run(1).fit(model, text(), load("wsd")(), shard=True, **HOW)
    except Bad as error:
        found["foreseen"] = str(error)
    memory.available = lambda device: room + (64 << 20)
    found["roomy"] = {"weights": trained().net.state_dict()}
    memory.available = plain
    try:
        Run(1).fit(preset("llama-1m", vocab=256, window=32), text(), load("sam")(rho=0.1), shard=True, **HOW)
    except Bad as error:
        found["refused"] = str(error)
    if team.leads:
        torch.save(found, out / "found.pt")
    team.wait()
