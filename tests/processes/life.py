"""A small recipe lived in a process of its own, so that it can be killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

RECIPE = """
name: a small life
seed: 3
given:
  pool: world:digits/noisy
  test: world:digits/test
  net: {model: mlp, width: 32}
steps:
  - train: {model: $net, data: $pool, steps: 120, lr: 1e-2, precision: fp32, as: judge}
  - el2n: {data: $pool, proxies: [$judge], keep: 0.8, as: kept}
  - train: {model: $net, data: $kept, steps: 400, lr: 1e-2, precision: fp32, as: grown,
            with: [{ema: {decay: 0.95}}, {wsd: {decay: 0.3}}, mixup]}
  - accuracy: {model: $grown, data: $test}
"""


def live(folder: str, every: float, die_while_saving: int = 0) -> None:
    """Run or resume the recipe in `folder`; at its end write the weights to weights.safetensors.

    every: seconds between checkpoints. die_while_saving: kill this process in the middle of so manieth checkpoint.
    """
    import torch
    import yaml
    from safetensors.torch import save_file

    from trainlore import runs, store
    from trainlore.execute import execute
    from trainlore.recipe import read

    torch.set_num_threads(1)
    runs.EVERY = every
    if die_while_saving:
        plain, saved = store.os.replace, [0]

        def replace(source, target):
            if "checkpoints" in str(target):
                saved[0] += 1
                if saved[0] == die_while_saving:
                    os.kill(os.getpid(), signal.SIGKILL)
            plain(source, target)

        store.os.replace = replace
    place = Path(folder)
    nouns = execute(read(yaml.safe_load(RECIPE)), place, resume=(place / "run.json").exists())
    save_file({k: v.contiguous() for k, v in nouns["grown"].net.state_dict().items()}, place / "weights.safetensors")
