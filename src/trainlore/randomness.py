"""Randomness is named, not consumed: a stream is its seed and key, whoever else draws and however often."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def number(seed: int, *key: Any) -> int:
    """The number (63 bits) that a seed and a key name."""
    digest = hashlib.blake2b(repr((seed, *key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def global_streams(seed: int, *key: Any) -> Iterator[None]:
    """Dropout and initializers draw from the global streams of torch and numpy: name those too, and put them back."""
    state = np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        name = number(seed, *key)
        torch.default_generator.manual_seed(name)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(name)
        np.random.seed(name % 2**32)
        try:
            yield
        finally:
            np.random.set_state(state)


def global_states() -> dict[str, Any]:
    """Where torch's global streams are, on the CPU and on every CUDA device that is in use."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def put_global_states(states: dict[str, Any]) -> None:
    """Put torch's global streams where `global_states` found them."""
    torch.set_rng_state(states["cpu"])
    for device, state in enumerate(states["cuda"]):
        torch.cuda.set_rng_state(state, device)
